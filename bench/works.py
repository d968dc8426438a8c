"""The work that every peer is put to: functions of a lab, a peer's name, seconds and a rate, that answer figures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import load
from bench.lab import LARGE_BYTES, Lab, Running
from bench.lineup import BY_NAME
from bench.load import Figures
from bench.machine import all_cores

IDLE_CONNECTIONS: Final = 5_000
_MESSAGE_BYTES: Final = 64
_POST_BYTES: Final = 300
_WARM_UP_SHARE: Final = 3


class DoesNotApply(Exception):
    """The peer is not made for that work; the text says why."""


@dataclass(frozen=True)
class Work:
    """`unit` is that of `figure`; with `needs_rate` it is done at half of what the slowest peer bears."""

    name: str
    title: str
    run: Callable[[Lab, str, float, float], Figures]
    figure: str = "rate"
    unit: str = "requests/s"
    less_is_better: bool = False
    needs_rate: bool = False


def _charged(running: Running, run: Callable[[], Figures]) -> Figures:
    """The figures of a load, with the rate, and what it cost the peer's processes."""
    process = running.process
    before = process.cpu_seconds() if process else 0.0
    figures = run()
    figures["rate"] = figures["requests"] / figures["seconds"]
    if process:
        cpu = process.cpu_seconds() - before
        figures["cpu_us"] = cpu / figures["requests"] * 1e6
        figures["busy"] = cpu / figures["seconds"]
    return figures


def _full_load(path: str, connections: int, body_bytes: int = 0) -> Callable[[Lab, str, float, float], Figures]:
    def run(lab: Lab, peer: str, seconds: float, _: float) -> Figures:
        with lab.peer(peer) as running:
            ask = partial(load.wrk, lab, running.port, path, connections=connections, body_bytes=body_bytes)
            # Peers that compile what they run often shall have done so.
            ask(seconds=max(1.0, seconds / _WARM_UP_SHARE))
            return _charged(running, partial(ask, seconds=seconds))

    return run


def _latency(lab: Lab, peer: str, seconds: float, rate: float) -> Figures:
    with lab.peer(peer) as running:
        return load.constant_rate(lab, running.port, "/small", connections=64, rate=rate, seconds=seconds)


def _messages(lab: Lab, peer: str, seconds: float, _: float) -> Figures:
    if not BY_NAME[peer].websocket:
        raise DoesNotApply("forwards no WebSockets")
    with lab.peer(peer, upstream_port=lab.echo_port) as running:
        ask = partial(load.messages, lab, running.port, connections=32, seconds=seconds, size_bytes=_MESSAGE_BYTES)
        return _charged(running, ask)


def _idle(lab: Lab, peer: str, _: float, __: float) -> Figures:
    with lab.peer(peer) as running, ExitStack() as connections:
        if running.process is None:
            raise DoesNotApply("the backend itself is not measured")
        before = running.process.memory_bytes()
        load.hold_idle(connections, lab, running.port, IDLE_CONNECTIONS)
        after = running.process.memory_bytes()
    return {
        "mib": after / 2**20,
        "start_mib": before / 2**20,
        "kib_a_connection": (after - before) / 2**10 / IDLE_CONNECTIONS,
    }


def _workers(lab: Lab, peer: str, seconds: float, _: float) -> Figures:
    """One worker, then two, with everything on all cores; the same load."""
    if peer != "gatekeeper":
        raise DoesNotApply("is compared with itself")
    found: Figures = {}
    for workers in (1, 2):
        with lab.peer(peer, workers=workers, cores=all_cores()) as running:
            ask = partial(load.wrk, lab, running.port, "/small", connections=64, cores=all_cores())
            ask(seconds=1.0)
            figures = _charged(running, partial(ask, seconds=seconds))
        found |= {f"rate_{workers}": figures["rate"], f"cpu_us_{workers}": figures["cpu_us"]}
    # What two cores of their own would make of it, if a request costs what it cost here.
    found["ratio"] = found["rate_2"] / found["rate_1"]
    found["ratio_by_cpu"] = 2 * found["cpu_us_1"] / found["cpu_us_2"]
    return found


WORKS: Final = (
    Work("small32", "Small JSON, 32 connections", _full_load("/small", 32)),
    Work("varied", "Small JSON, no head like another, 32 connections", _full_load("/varied", 32)),
    Work("small512", "Small JSON, 512 connections", _full_load("/small", 512)),
    Work("download", f"Download of {LARGE_BYTES // 1000} kB, 32 connections", _full_load("/large", 32)),
    Work("post", f"POST of {_POST_BYTES} bytes, 32 connections", _full_load("/upload", 32, _POST_BYTES)),
    Work("upload", f"Upload of {LARGE_BYTES // 1000} kB, 32 connections", _full_load("/upload", 32, LARGE_BYTES)),
    Work(
        "latency",
        "Latency at half of what the slowest peer bears",
        _latency,
        figure="p99_us",
        unit="µs, p99",
        less_is_better=True,
        needs_rate=True,
    ),
    Work(
        "latency-busy",
        "Latency at half of what the slowest peer bears, the naive stack left out",
        _latency,
        figure="p99_us",
        unit="µs, p99",
        less_is_better=True,
        needs_rate=True,
    ),
    Work("websocket", f"WebSocket, echo of {_MESSAGE_BYTES} bytes, 32 connections", _messages, unit="messages/s"),
    Work(
        "idle",
        f"Memory with {IDLE_CONNECTIONS:,} idle connections",
        _idle,
        figure="mib",
        unit="MiB",
        less_is_better=True,
    ),
    Work("workers", "Two workers and one", _workers, figure="ratio", unit="× one worker"),
)
BY_NAME_OF_WORK: Final = {work.name: work for work in WORKS}
