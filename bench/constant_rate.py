"""Latency at a constant rate: requests leave when they are due, whether or not the ones before were answered, and are
timed from when they were due. So a peer that stalls pays for every request that it kept waiting (what wrk, which waits
for an answer before it asks again, leaves out: "coordinated omission").

`python -m bench.constant_rate PORT CONNECTIONS RATE SECONDS PATH TOKENS`; the result is one line of JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final, cast

import uvloop

_RUNNING_IN_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 5.0


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("first", _Timespec))


def ticking(interval_seconds: float) -> int:
    """A file descriptor that becomes readable at every interval (timerfd_create(2)): an event loop's own timers keep
    whole milliseconds only."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    whole, part = divmod(interval_seconds, 1)
    step = _Timespec(int(whole), max(1, int(part * 1e9)))
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, ctypes.byref(_Timer(step, step)), None) < 0:
        raise OSError(ctypes.get_errno(), "no timer")
    return descriptor


class Schedule:
    """The requests that are due, the connections that are free, and how long each request took."""

    def __init__(self, requests: list[bytes]) -> None:
        self.taken: list[float] = []
        self.refused = self.broken = 0
        self._requests = requests
        self._free: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self._number = 0

    def ask(self, due_at: float) -> None:
        """Sends one request now, or when a connection is free."""
        if self._free:
            self._send(self._free.popleft(), due_at)
        else:
            self._due.append(due_at)

    def is_free(self, connection: Connection) -> None:
        if self._due:
            self._send(connection, self._due.popleft())
        else:
            self._free.append(connection)

    def _send(self, connection: Connection, due_at: float) -> None:
        self._number = (self._number + 1) % len(self._requests)
        connection.send(self._requests[self._number], due_at)


class Connection(asyncio.Protocol):
    """Asks for one small answer at a time. An answer is over when as many bytes are there as its `Content-Length` says;
    chunked answers end with their last chunk."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._data = b""
        self._due_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._schedule.is_free(self)

    def send(self, request: bytes, due_at: float) -> None:
        self._due_at = due_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end or not _is_whole(head.lower(), body):
            return
        self._schedule.taken.append(time.perf_counter() - self._due_at)
        self._schedule.refused += not self._data.startswith(b"HTTP/1.1 200")
        self._data = b""
        self._schedule.is_free(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._schedule.broken += 1


def _is_whole(head: bytes, body: bytes) -> bool:
    _, named, length = head.partition(b"\r\ncontent-length:")
    return len(body) >= int(length.split(b"\r\n")[0]) if named else body.endswith(b"0\r\n\r\n")


async def measure(
    port: int, connections: int, rate: float, seconds: float, requests: list[bytes]
) -> dict[str, float | int]:
    """Latencies in microseconds of what was due within `seconds`, after a second of running in."""
    loop, schedule = asyncio.get_running_loop(), Schedule(requests)
    opened = [await loop.create_connection(lambda: Connection(schedule), "127.0.0.1", port) for _ in range(connections)]
    asked, total = 0, int(rate * (seconds + _RUNNING_IN_SECONDS))
    descriptor = ticking(1 / rate)
    begun, over = time.perf_counter(), loop.create_future()

    def tick() -> None:
        nonlocal asked
        for _ in range(int.from_bytes(os.read(descriptor, 8), sys.byteorder)):
            if asked == total:
                loop.remove_reader(descriptor)
                over.set_result(None)
                return
            asked += 1
            schedule.ask(begun + asked / rate)

    loop.add_reader(descriptor, tick)
    await over
    deadline = time.perf_counter() + _PATIENCE_SECONDS
    while len(schedule.taken) < total and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    os.close(descriptor)
    summary = _summary(schedule, total, int(rate * _RUNNING_IN_SECONDS))
    for transport, _ in opened:
        transport.abort()
    return summary


def _summary(schedule: Schedule, total: int, running_in: int) -> dict[str, float | int]:
    taken = sorted(schedule.taken[running_in:]) or [float("nan")]
    return {
        "requests": len(taken),
        "unanswered": total - len(schedule.taken),
        "refused": schedule.refused,
        "broken": schedule.broken,
        "p50_us": taken[len(taken) // 2] * 1e6,
        "p90_us": taken[len(taken) * 9 // 10] * 1e6,
        "p99_us": taken[len(taken) * 99 // 100] * 1e6,
        "max_us": taken[-1] * 1e6,
    }


def main(port: str, connections: str, rate: str, seconds: str, path: str, tokens: str) -> None:
    gc.disable()
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        for token in Path(tokens).read_text().split()
    ]
    print(json.dumps(uvloop.run(measure(int(port), int(connections), float(rate), float(seconds), requests))))


if __name__ == "__main__":
    main(*sys.argv[1:])
