"""Whoever reads the log may be slow, gone or full: requests, health and shutdown go on, and whole lines are lost and
counted. Pipes, terminals and files as the shell, docker and collectors hand them to a process."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from io import FileIO
from pathlib import Path
from typing import Any, Final

import pytest

from tests.servers import fetch
from tests.system.sidecar import (
    Backend,
    Store,
    bearer,
    environment,
    eventually,
    external_store,
    metrics,
    someone,
    token,
)

# Most of it is for a slow machine to start two workers.
pytestmark = pytest.mark.timeout(600)

_COMMAND: Final = Path(sys.executable).parent / "gatekeeper"
_DROPPED: Final = ("gatekeeper_log_lines_dropped_total", frozenset[Any]())
_SECONDS: Final = 120.0
_MOST_REQUESTS: Final = 20_000
# Lines of 1.5 kB: a pipe of 64 KiB is full after fifty.
_LONG: Final = "/" + "a" * 1200


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


class Gate:
    """A `gatekeeper serve` whose stdout and stderr are not files."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, ops_port: int) -> None:
        self.process = process
        self._port, self.ops = port, f"http://127.0.0.1:{ops_port}"

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.returncode
        with suppress(OSError):
            return fetch(self.ops, "GET", "/readyz").status == 200
        return False

    def serves(self, user: str | None = None, *, path: str = _LONG, times: int = 1) -> None:
        """Answer requests, each of a session of its own, over one connection."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        with closing(connection):
            for _ in range(times):
                connection.request("GET", path, headers=dict([bearer(token(user or someone()))]))
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b"ok")

    @property
    def dropped(self) -> float:
        return metrics(self.ops)[_DROPPED]

    def fill(self) -> None:
        """Send requests of new sessions until lines are dropped."""
        for _ in range(_MOST_REQUESTS // 50):
            self.serves(times=50)
            assert fetch(self.ops, "GET", "/livez").status == 200
            if self.dropped:
                return
        raise AssertionError("no line was dropped")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_SECONDS) == 0


@contextmanager
def gate(
    backend: Backend, store: Store, *, stdout: Any, stderr: Any, command: tuple[str, ...] = (), **settings: str
) -> Iterator[Gate]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, ops_port = one.getsockname()[1], two.getsockname()[1]
    given = {
        "upstream_url": backend.url,
        "redis_url": store.url,
        "listen": f"127.0.0.1:{port}",
        "ops_listen": f"127.0.0.1:{ops_port}",
        "rate_limit": "off",
    }
    process = subprocess.Popen(
        [*command, _COMMAND, "serve"],
        env=environment(**given | settings),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    running = Gate(process, port, ops_port)
    try:
        eventually(running.is_ready, seconds=_SECONDS)
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Reader:
    """Reads a pipe to its end in a thread."""

    def __init__(self, output: FileIO | int) -> None:
        self.text = b""
        self._fd = output if isinstance(output, int) else output.fileno()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):  # of a terminal that is gone
            while data := os.read(self._fd, 1 << 16):
                self.text += data

    def wait(self) -> None:
        """Return at the end of the output."""
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()

    def lines(self, *, whole: bool = False) -> list[dict[str, Any]]:
        """All lines; with `whole`, after the end of the output."""
        if whole:
            self.wait()
            assert self.text.endswith(b"\n")
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith(b"\n")]


def told(lines: list[dict[str, Any]]) -> int:
    """How many dropped lines the log tells of."""
    return sum(line["lines"] for line in lines if line["event"].startswith("log lines dropped: "))


@contextmanager
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reading, writing = os.pipe()
    with FileIO(reading, "r") as first, FileIO(writing, "w") as second:
        yield first, second


@pytest.mark.parametrize(
    ("unread", "workers"),
    [(("stdout",), "1"), (("stderr",), "1"), (("stdout", "stderr"), "1"), (("stdout", "stderr"), "2")],
    ids=["stdout", "stderr", "both", "both, of two workers"],
)
def test_a_pipe_that_nobody_reads_costs_lines_and_nothing_else(
    backend: Backend, store: Store, tmp_path: Path, unread: tuple[str, ...], workers: str
) -> None:
    """Also where stdout and stderr are one pipe, as below systemd and in a shell's `2>&1 |`."""
    with pipe() as (reading, writing), (tmp_path / "other").open("wb") as other:
        outputs: dict[str, Any] = {name: writing if name in unread else other for name in ("stdout", "stderr")}
        with gate(backend, store, workers=workers, **outputs) as running:
            # There from the start; with several workers, from the start of the first.
            eventually(lambda: metrics(running.ops).get(_DROPPED) == 0, seconds=_SECONDS)
            writing.close()
            running.fill()
            assert running.is_ready()
            reader = Reader(reading)

            def is_told() -> bool:
                running.serves()
                text = reader.text if "stderr" in unread else (tmp_path / "other").read_bytes()
                return b"log lines dropped: " in text

            eventually(is_told, seconds=_SECONDS)
            running.end()
        lines = reader.lines(whole=True)
        assert {line["level"] for line in lines} <= {"info", "warning"}
        log = (
            lines
            if "stderr" in unread
            else [json.loads(line) for line in (tmp_path / "other").read_text().splitlines()]
        )
        assert told(log) > 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_process_whose_log_nobody_reads_ends_when_it_is_told_to(backend: Backend, store: Store, workers: str) -> None:
    with pipe() as (_, writing), gate(backend, store, stdout=writing, stderr=writing, workers=workers) as running:
        running.fill()
        running.end()


@pytest.mark.parametrize("closed", [("stdout",), ("stdout", "stderr")], ids="+".join)
def test_a_reader_that_is_gone(backend: Backend, store: Store, tmp_path: Path, closed: tuple[str, ...]) -> None:
    with pipe() as (reading, writing), (tmp_path / "other").open("wb") as other:
        outputs: dict[str, Any] = {name: writing if name in closed else other for name in ("stdout", "stderr")}
        with gate(backend, store, **outputs) as running:
            writing.close()
            reading.close()
            running.fill()
            running.end()
        if closed == ("stdout",):
            log = [json.loads(line) for line in (tmp_path / "other").read_text().splitlines()]
            assert any(line["event"] == "log lines dropped: stdout (Broken pipe)" for line in log)


def test_outputs_that_are_closed_from_the_start(backend: Backend, store: Store) -> None:
    shell = ("/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh")
    with gate(backend, store, stdout=None, stderr=None, command=shell) as running:
        running.fill()
        running.end()


def test_a_full_disk_behind_the_files(backend: Backend, store: Store, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: a write is cut in the middle of a line, and then there is none. When
    there is room again, that line is finished before the next one."""
    out, err = tmp_path / "out", tmp_path / "err"
    with (
        out.open("ab") as stdout,
        err.open("ab") as stderr,
        gate(backend, store, stdout=stdout, stderr=stderr) as running,
    ):
        for _ in range(3):
            running.serves()
        eventually(lambda: out.read_bytes().count(b"\n") == 3)
        full = max(out.stat().st_size, err.stat().st_size) + 700
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        running.fill()
        assert not out.read_bytes().endswith(b"\n")
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        running.serves()
        running.end()
    assert all(json.loads(line)["status"] == 200 for line in out.read_text().splitlines())
    log = [json.loads(line) for line in err.read_text().splitlines()]
    assert any(line["event"].startswith("log lines dropped: stdout (File too large)") for line in log)


def test_a_device_that_is_full(backend: Backend, store: Store) -> None:
    with Path("/dev/full").open("wb") as full, gate(backend, store, stdout=full, stderr=full) as running:
        running.fill()
        running.end()


def test_a_terminal_that_is_stopped(backend: Backend, store: Store) -> None:
    """Ctrl-S, and what it holds up: a write to a stopped terminal waits until Ctrl-Q."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    try:
        reader = Reader(ours)
        with gate(backend, store, stdout=theirs, stderr=theirs) as running:
            termios.tcflow(theirs, termios.TCOOFF)
            running.fill()
            termios.tcflow(theirs, termios.TCOON)

            def is_told() -> bool:
                running.serves()
                return b"log lines dropped: " in reader.text

            eventually(is_told, seconds=_SECONDS)
            termios.tcflow(theirs, termios.TCOOFF)
            running.fill()
            running.end()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_whole_lines(backend: Backend, store: Store, blocking: bool) -> None:
    """Lines of two workers that are longer than the kernel keeps together, in a pipe that is always full; also where
    another process made the file description non-blocking, which it shares with ours."""
    with pipe() as (reading, writing):
        os.set_blocking(writing.fileno(), blocking)
        with gate(backend, store, stdout=writing, stderr=writing, workers="2") as running:
            writing.close()
            users = [someone() + "\N{GREEK SMALL LETTER OMEGA}" * 200 for _ in range(20)]

            def ask() -> None:
                for user in users:
                    running.serves(user, path="/" + '"' * 2000, times=5)

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            text = b""
            while any(thread.is_alive() for thread in threads):
                text += os.read(reading.fileno(), 1500)
            reader = Reader(reading)
            running.end()
            reader.wait()
        lines = [json.loads(line) for line in (text + reader.text).splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) + told(lines) >= 400
    assert max(len(json.dumps(line)) for line in requests) > 4096


@pytest.mark.parametrize("workers", ["1", "2"])
def test_everything_is_written_at_the_end(backend: Backend, store: Store, workers: str) -> None:
    with pipe() as (reading, writing), pipe() as (reading_log, writing_log):
        with gate(backend, store, stdout=writing, stderr=writing_log, workers=workers) as running:
            writing.close()
            writing_log.close()
            readers = [Reader(reading), Reader(reading_log)]
            running.serves(times=300)
            running.end()
        access, log = (reader.lines(whole=True) for reader in readers)
    assert len(access) == 300
    assert len([line for line in log if line["event"] == "audit"]) == 300
    assert told(log) == 0


def test_a_terminal_has_colors_unless_its_user_wants_none(backend: Backend, store: Store) -> None:
    seen = {}
    for wish in ("", "1"):
        ours, theirs = os.openpty()
        reader = Reader(ours)
        shell = ("/usr/bin/env", f"NO_COLOR={wish}", "TERM=xterm")
        with gate(backend, store, stdout=theirs, stderr=theirs, command=shell, log_format="text") as running:
            running.end()
        os.close(theirs)
        reader.wait()
        os.close(ours)
        seen[wish] = b"\x1b[" in reader.text
        assert b"server listening" in reader.text
    assert seen == {"": True, "1": False}
