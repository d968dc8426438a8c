"""Gatekeeper as its users run it: `gatekeeper serve` as a process with environment variables, an external Valkey, and
a backend that keeps what reaches it. Each is a context manager, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis

from gatekeeper.store.embedded import server_binary
from tests.servers import ClientResponse, RawConnection, RawRequest, RecordingBackend, Script, fetch
from tests.stored_index import index
from tests.tokens import forge
from tests.waiting import HANG_SECONDS
from tests.waiting import START_SECONDS as START_SECONDS
from tests.waiting import eventually as eventually

_COMMAND = Path(sys.executable).parent / "gatekeeper"
_numbers = itertools.count(random.randrange(10**6, 10**9) * 1000)


# Tokens


def someone() -> str:
    """A user that nobody used before: tests share stores and sidecars, never users."""
    return str(next(_numbers))


def token(user: str, **claims: Any) -> str:
    """A good token for ten minutes, of a session of its own; `...` takes a claim away."""
    now = int(time.time())
    usual = {"sub": user, "jti": uuid.uuid4().hex, "iat": now, "exp": now + 600}
    return forge.token(claims=usual | claims)


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


# What reaches the backend


class Reached(NamedTuple):
    """A request as the application behind Gatekeeper got it; header names in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


async def hello(connection: RawConnection, request: RawRequest) -> None:
    """200 with two bytes, none for HEAD."""
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n")
    if request.method != b"HEAD":
        await connection.write(b"ok")


class Backend:
    """A `RecordingBackend` in a thread with a loop of its own, to live longer than one test."""

    def __init__(self, answer: bytes | Script = hello, *, path: Path | None = None, read_bodies: bool = True) -> None:
        self._backend = RecordingBackend(answer, path=path, read_bodies=read_bodies)
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(HANG_SECONDS)
        assert not self._thread.is_alive()

    async def _live(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self._backend:
            self._up.set()
            await self._over.wait()

    @property
    def url(self) -> str:
        return self._backend.url

    @property
    def raw(self) -> list[RawRequest]:
        return self._backend.requests

    @property
    def reached(self) -> list[Reached]:
        return [
            Reached(
                request.method.decode("latin-1"),
                request.target.decode("latin-1"),
                [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers],
            )
            for request in list(self._backend.requests)
        ]


# The store


class Store:
    """A Valkey of its own, on a unix socket, that keeps nothing unless `options` say so; can be killed, frozen and
    started again."""

    def __init__(self, directory: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self._options = options
        self._environment = None if environment is None else {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.path = directory / "store.sock"
        self.url = f"unix://{self.path}"
        self.client = redis.Redis(unix_socket_path=str(self.path), decode_responses=True)

    def start(self, *options: str, wait: bool = True) -> None:
        """Starts it; returns when it answers."""
        self.path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                server_binary(),
                "--port",
                "0",
                "--unixsocket",
                str(self.path),
                "--save",
                "",
                "--dir",
                str(self.directory),
                *self._options,
                *options,
            ],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if wait:
            eventually(self.answers)

    def answers(self) -> bool:
        """Whether it does what it is asked."""
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.client.close()
        self.kill()

    @property
    def connections(self) -> int:
        """How many Gatekeepers have to this server for their calls."""
        return sum(client["name"] == "gatekeeper" for client in self.client.client_list())

    @property
    def scripts_run(self) -> int:
        """How many scripts this server ever ran for requests: one is a round trip of a verdict or of an operation. What
        Gatekeepers ask by themselves is counted in the epoch."""
        together = self.client.pipeline(transaction=True)
        together.info("commandstats")
        together.hget("gk:epoch", "beats")
        stats: Any
        stats, beats = together.execute()
        return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"]) - int(beats or 0)

    def live(self, user: str, prefix: str = "gk:") -> int:
        """The sessions of a user that have not ended."""
        return sum(score > 0 for score in index(self.client, f"{prefix}{{{user}}}").values())

    def last_activity(self, user: str, prefix: str = "gk:") -> float:
        """Of the user's only session, in microseconds."""
        (score,) = index(self.client, f"{prefix}{{{user}}}").values()
        return score


@contextmanager
def external_store(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="gk-store-") as directory:
        store = Store(Path(directory), *options, environment=environment)
        try:
            store.start()
            yield store
        finally:
            store.close()


# The sidecar


def environment(**settings: str) -> dict[str, str]:
    """The environment of a Gatekeeper: of this process nothing that it would read, plus `settings` without prefix."""
    usual = {
        "jwt_secret": forge.SECRET,
        "listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "log_format": "json",
    }
    if {"jwks_url", "jwt_public_key", "jwt_secret_file"} & settings.keys():
        del usual["jwt_secret"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}
    return outside | {f"GATEKEEPER_{name.upper()}": value for name, value in (usual | settings).items()}


class World:
    """Gatekeeper in front of an application, whichever way: where it listens, and what got through.

    `reached` is what the application was asked, `store` the server behind, `settings` what differs from the defaults.
    """

    def __init__(self, url: str, reached: Callable[[], list[Reached]], store: Store | None = None) -> None:
        self.url = url
        self._reached = reached
        self._store = store

    @property
    def reached(self) -> list[Reached]:
        return self._reached()

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    def fetch(
        self,
        target: str,
        token: str | None = None,
        *,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> ClientResponse:
        credentials = [] if token is None else [bearer(token)]
        return fetch(self.url, method, target, [*credentials, *headers], body)

    def passed(self, *arguments: Any, **options: Any) -> Reached:
        """What the application got of a request that must be admitted."""
        before = len(self.reached)
        answer = self.fetch(*arguments, **options)
        assert answer.status == 200, (answer.status, answer.body)
        (request,) = self.reached[before:]
        return request

    def refused(self, *arguments: Any, **options: Any) -> ClientResponse:
        """The answer to a request that must not reach the application."""
        before = len(self.reached)
        answer = self.fetch(*arguments, **options)
        assert answer.status >= 400, answer
        assert self.reached[before:] == []
        return answer

    def session_ids(self, token: str) -> list[int]:
        """The caller's live sessions, newest activity first."""
        return [row["id"] for row in json.loads(self.fetch("/sessions/me", token).body)]


class Sidecar:
    """One `gatekeeper serve` and what it says."""

    def __init__(
        self,
        settings: dict[str, str],
        directory: Path,
        number: int = 0,
        *,
        options: Iterable[str] = (),
        pass_fds: Collection[int] = (),
        launcher: str = "",
    ) -> None:
        self._out, self._err = directory / f"stdout-{number}", directory / f"stderr-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", launcher, _COMMAND] if launcher else [_COMMAND, *options, "serve"],
                env=environment(**settings),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.url = self.ops = ""
        self.paths: list[str] = []

    def wait_until_listening(self) -> None:
        line = eventually(self._start_line, seconds=START_SECONDS)
        self.url, self.ops, self.paths = line["listen"], line["ops"], line["paths"]

    def _start_line(self) -> dict[str, Any] | None:
        assert self.process.poll() is None, f"gatekeeper ended with {self.process.returncode}:\n{self.stderr}"
        return next((line for line in self.log if line["event"] == "server listening"), None)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the process's own log that are complete."""
        return [json.loads(line) for line in self.stderr.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def access(self) -> list[dict[str, Any]]:
        """The access lines that are complete."""
        return [json.loads(line) for line in self.stdout.splitlines(keepends=True) if line.endswith("\n")]

    def access_of(self, request_id: str) -> dict[str, Any]:
        """The one access line of a request; it may follow the answer by a moment."""
        lines: list[dict[str, Any]] = eventually(
            lambda: [line for line in self.access if line["request_id"] == request_id]
        )
        (line,) = lines
        return line

    def metric(self, name: str, **labels: str) -> float:
        """A value of `/metrics`, with exactly these labels in any order; 0 if it is not there."""
        return metrics(self.ops).get((name, frozenset(labels.items())), 0.0)

    def ready(self) -> ClientResponse:
        return fetch(self.ops, "GET", "/readyz")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, *, seconds: float = START_SECONDS) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        """This process and its workers, and no word to anybody."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Ends it the usual way if it still runs, and makes sure."""
        if self.process.poll() is None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.exit_code()
        self.kill()


@contextmanager
def sidecar(upstream: str, *options: str, **settings: str) -> Iterator[Sidecar]:
    """A running sidecar in front of `upstream`, with `options` before its command; without `redis_url` with a store of
    its own. At the end, nothing that it wrote may be a traceback or a warning of Python's."""
    with tempfile.TemporaryDirectory(prefix="gk-") as name:
        directory = Path(name)
        given = {"upstream_url": upstream, "data_dir": str(directory / "data")} | settings
        running = Sidecar(given, directory, options=options)
        try:
            running.wait_until_listening()
            yield running
        finally:
            running.close()
            kill_embedded(Path(settings.get("data_dir", directory / "data")))
        assert "Traceback" not in running.stderr, running.stderr
        assert "Warning" not in running.stderr, running.stderr


def embedded_pid(data_dir: Path) -> int | None:
    """The process id of the Valkey in `data_dir`, None where none runs."""
    try:
        pid = int((data_dir / "valkey.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(data_dir) in command else None


def kill_embedded(data_dir: Path) -> None:
    """Kills the Valkey that an ended Gatekeeper left behind in `data_dir`, if there is one."""
    pid = embedded_pid(data_dir)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: embedded_pid(data_dir) is None)


Metric = tuple[str, frozenset[tuple[str, str]]]
_SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


def metrics(ops: str) -> dict[Metric, float]:
    """Every sample of `/metrics`."""
    return samples(fetch(ops, "GET", "/metrics").body.decode())


def samples(text: str) -> dict[Metric, float]:
    """Every sample of an exposition in Prometheus' text format."""
    found: dict[Metric, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        labels = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', match["labels"] or "")
        found[match["name"], frozenset(labels)] = float(match["value"])
    return found


def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """One run of the command line, to its end, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gk-cli-") as directory:
        return subprocess.run(
            [_COMMAND, *arguments],
            env=environment(**settings),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )


def masked(body: bytes) -> bytes:
    """An answer with its times, ids of sessions and request ids replaced by what they are."""
    body = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", b"<microseconds>", body)
    body = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", b"<milliseconds>", body)
    body = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"<seconds>", body)
    body = re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", b"<uuid>", body)
    body = re.sub(rb'"session_[1-9]\d{0,15}"', b'"session_<id>"', body)
    return re.sub(rb'"id":[1-9]\d{0,15}', b'"id":<id>', body)
