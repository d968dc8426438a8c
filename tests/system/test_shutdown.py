"""The end: nothing new is let in, what is under way is finished, and nothing is left behind."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers import RawConnection, RawRequest, fetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, embedded_pid, eventually, sidecar, someone, token
from tests.system.slow import SlowBackend, refuses_connections, slow_request
from tests.waiting import HANG_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished_and_the_exit_is_0(store: Store, number: int) -> None:  # K1
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url) as gate:
        with slow_request(backend, gate) as under_way:
            assert gate.ready().status == 200
            gate.process.send_signal(number)
            answer = eventually(lambda: (ready := gate.ready()).status == 503 and ready)
            assert answer.body == b"shutting down\n"
            eventually(lambda: refuses_connections(gate))
            assert gate.process.poll() is None
            # The ops port lives until the end.
            assert fetch(gate.ops, "GET", "/livez").status == 200
            assert not under_way.done()
            backend.release.set()
            assert under_way.result(HANG_SECONDS).body == b"ok"
        assert gate.exit_code() == 0
        assert gate.access[-1]["status"] == 200


def test_during_the_delay_requests_are_still_accepted(store: Store, backend: Backend) -> None:
    with sidecar(backend.url, redis_url=store.url, shutdown_delay="5s") as gate:
        gate.terminate()
        eventually(lambda: gate.ready().status == 503)
        assert fetch(gate.url, "GET", "/", [bearer(token(someone()))]).status == 200
        assert gate.exit_code() == 0


def test_what_takes_longer_than_the_grace_is_cut(store: Store) -> None:  # P0-S17
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url, shutdown_grace="300ms") as gate:
        with slow_request(backend, gate) as under_way:
            gate.terminate()
            assert gate.exit_code() == 0
            answer = under_way.result(HANG_SECONDS)
            assert answer.status == 504
            assert json.loads(answer.body)["code"] == "upstream_timeout"
        line = gate.access_of(answer.get_all("x-request-id")[0])
        assert (line["status"], line["decision"], line["reason"]) == (504, "error", "upstream_timeout")


EVENT = b"data: 1\n\n"


async def _never_ending(connection: RawConnection, request: RawRequest) -> None:
    """Events under `/events`, a download elsewhere: both begin, and go on until somebody leaves."""
    kind = b"text/event-stream" if request.target == b"/events" else b"application/octet-stream"
    await connection.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + EVENT + b"\r\n"
    )
    await connection.gone()


def test_streams_end_politely_at_the_end_of_the_grace(store: Store) -> None:  # P0-S17
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(_never_ending, read_bodies=False))
        gate = stack.enter_context(sidecar(backend.url, redis_url=store.url, shutdown_grace="700ms"))
        authorization = ": ".join(bearer(token(someone())))
        head = f"HTTP/1.1\r\nHost: a\r\n{authorization}\r\n"
        asked = {
            "events": f"GET /events {head}\r\n",
            "download": f"GET /download {head}\r\n",
            "upload": f"POST /upload {head}Content-Length: 100\r\n\r\nabc",
            "idle": f"GET /_gatekeeper/openapi.json {head}\r\n",
            "half": "GET /half HTTP/1.1\r\n",
            "fresh": "",
        }
        streams = {}
        for name, data in asked.items():
            streams[name] = stack.enter_context(socket.create_connection(_where(gate), timeout=HANG_SECONDS))
            streams[name].sendall(data.encode())
        begun = {name: _until(streams[name], EVENT) for name in ("events", "download", "upload")}
        _until(streams["idle"], b'"openapi"')
        gate.terminate()
        # Who has nothing under way is let go at once, without an answer.
        for name in ("half", "fresh"):
            assert streams[name].recv(1) == b""
        while streams["idle"].recv(65536):
            pass
        assert gate.process.poll() is None
        # Events have an end whenever they end; a part of a download must not be taken for the whole.
        assert _rest(streams["events"]).endswith(b"0\r\n\r\n")
        for name in ("download", "upload"):
            assert not (begun[name] + _rest(streams[name])).endswith(b"0\r\n\r\n")
        assert gate.exit_code() == 0


def _where(gate: Sidecar) -> tuple[str, int]:
    parts = urlsplit(gate.url)
    return str(parts.hostname), int(parts.port or 0)


def _until(connection: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def _rest(connection: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def test_a_second_sigterm_ends_at_once(store: Store) -> None:
    with (
        SlowBackend() as backend,
        sidecar(backend.url, redis_url=store.url, shutdown_grace="1h") as gate,
        slow_request(backend, gate) as under_way,
    ):
        gate.terminate()
        eventually(lambda: gate.ready().status == 503)
        gate.terminate()
        gate.exit_code()
        # "At once" promises nobody an answer.
        with suppress(OSError):
            assert under_way.result(HANG_SECONDS).status == 504


def test_nothing_is_left_behind(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with sidecar(backend.url, data_dir=str(data_dir)) as gate:
        fetch(gate.url, "GET", "/", [bearer(token(someone()))])
        pid = embedded_pid(data_dir)
        assert pid is not None
        gate.terminate()
        assert gate.exit_code() == 0
        assert embedded_pid(data_dir) is None
        assert not Path(f"/proc/{pid}").exists()
