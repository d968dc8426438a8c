"""The set-up around a peer: store, backends, sessions and tokens; and the peer itself, fresh for every measurement."""

from __future__ import annotations

import http.client
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

import jwt
import redis

from bench import tools
from bench.lineup import BY_NAME, Peer, Place, fill
from bench.machine import Cores, DidNotStart, Process, free_port, other_cores, proxy_cores, running
from gatekeeper.store.embedded import server_binary

SESSIONS: Final = 1_000
LARGE_BYTES: Final = 100_000
_TOKEN_SECONDS: Final = 6 * 3600
_IDLE_SECONDS: Final = 1800


class Running(NamedTuple):
    """A peer that answers: its port, and its process (None for the backend alone)."""

    peer: Peer
    port: int
    process: Process | None


class Lab:
    """A context: store and backends run while it is open, on the cores that are not the peer's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = secrets.token_urlsafe(48)
        self.tokens_file = directory / "tokens"
        self.few_tokens_file = directory / "few-tokens"
        self.tokens: list[str] = []
        self._stack = ExitStack()
        self._numbers = iter(range(1, 1_000_000))

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.store_port = stack.enter_context(store(self.directory))
            self.echo_port = stack.enter_context(_echo(self.directory))
            self.backend_port = stack.enter_context(_backend(self.directory / "backend", self.echo_port))
            self.client = stack.enter_context(redis.Redis(port=self.store_port))
            self._open_sessions()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open_sessions(self) -> None:
        """For peers that find their sessions in the store. Gatekeeper opens its own at a token's first request."""
        now = int(time.time())
        pipeline = self.client.pipeline(transaction=False)
        for number in range(SESSIONS):
            claims = {"sub": f"user-{number}", "jti": secrets.token_hex(16), "iat": now, "exp": now + _TOKEN_SECONDS}
            self.tokens.append(jwt.encode(claims, self.secret, algorithm="HS256"))
            key = f"session:{claims['jti']}"
            pipeline.hset(key, mapping={"user": f"user-{number}", "ended": 0, "last_activity": now})
            pipeline.expire(key, _TOKEN_SECONDS)
        pipeline.execute()
        self.tokens_file.write_text("\n".join(self.tokens))
        self.few_tokens_file.write_text("\n".join(self.tokens[:64]))

    @contextmanager
    def peer(
        self, name: str, *, upstream_port: int | None = None, workers: int = 1, cores: Cores | None = None
    ) -> Iterator[Running]:
        """A fresh process of that peer, which has answered every token once. Raises `DidNotStart`."""
        peer, upstream = BY_NAME[name], upstream_port or self.backend_port
        if not peer.command(self._place(0, upstream)):
            yield Running(peer, upstream, None)
            return
        place = self._place(free_port(), upstream, workers)
        place.directory.mkdir(parents=True)
        peer.render(place)
        log = place.directory / "output"
        token = self.tokens[0]

        def ready() -> bool:
            return answers(place.port, "/small", token) == 200 or upstream != self.backend_port

        command, environment = peer.command(place), peer.environment(place)
        with running(command, cores or proxy_cores(), log, environment, ready=ready) as process:
            if upstream == self.backend_port:
                self._must_refuse(peer, place.port)
                self._warm_up(place.port)
            yield Running(peer, place.port, process)

    def _place(self, port: int, upstream_port: int, workers: int = 1) -> Place:
        directory = self.directory / f"run-{next(self._numbers)}"
        return Place(port, upstream_port, self.store_port, directory, self.secret, workers)

    def _must_refuse(self, peer: Peer, port: int) -> None:
        """Proves that a peer checks all that the lineup says. Gatekeeper adopts a good token that has no session."""
        claims = {"sub": "nobody", "jti": "none", "exp": int(time.time()) + 60}
        forged, unknown = (jwt.encode(claims, key, algorithm="HS256") for key in (self.secret[::-1], self.secret))
        if "token" in peer.checks and answers(port, "/small", forged) != 401:
            raise DidNotStart(f"{peer.name} let a forged token pass")
        if "session" in peer.checks and peer.name != "gatekeeper" and answers(port, "/small", unknown) != 401:
            raise DidNotStart(f"{peer.name} let a token pass that has no session")

    def _warm_up(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for token in self.tokens:
            connection.request("GET", "/small", headers={"Authorization": f"Bearer {token}"})
            connection.getresponse().read()
        connection.close()


def answers(port: int, path: str, token: str) -> int:
    """The status of one request. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


@contextmanager
def store(directory: Path) -> Iterator[int]:
    """A Valkey that keeps nothing; its port."""
    port = free_port()
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--dir", str(directory)]
    with running(command, other_cores(), directory / "store.log", ready=lambda: redis.Redis(port=port).ping() is True):
        yield port


@contextmanager
def _backend(directory: Path, echo_port: int) -> Iterator[int]:
    place = Place(free_port(), echo_port, 0, directory, "")
    fill(tools.HERE / "backend.conf", place)
    (directory / "large").write_bytes(b"x" * LARGE_BYTES)
    command = ["nginx", "-p", str(directory), "-c", str(directory / "backend.conf"), "-e", "stderr"]
    with running(command, other_cores(), directory / "output", ready=lambda: answers(place.port, "/small", "") == 200):
        yield place.port


@contextmanager
def _echo(directory: Path) -> Iterator[int]:
    port = free_port()
    command = [tools.python(), "-m", "bench.echo", str(port)]
    with running(command, other_cores(), directory / "echo.log", ready=lambda: answers(port, "/", "") > 0):
        yield port
