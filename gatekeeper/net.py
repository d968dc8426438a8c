"""Liveness of connections from which nothing may be read for long."""

from __future__ import annotations

import asyncio
import random
import select
import socket
from typing import Final

# Not the generator of the `random` module, which an application may seed.
_chance: Final = random.Random()  # noqa: S311 - no secret
# A host that died sends nothing: it is probed after a minute of silence and given up two minutes later.
_IDLE_SECONDS: Final = 60
_INTERVAL_SECONDS: Final = 20
_PROBES: Final = 6


def enable_keepalive(transport: asyncio.BaseTransport) -> None:
    """Let the system probe the other side of a silent TCP connection (RFC 9293 section 3.8.4)."""
    _probe(transport, idle_seconds=_IDLE_SECONDS, interval_seconds=_INTERVAL_SECONDS)


def probe_often(transport: asyncio.BaseTransport) -> None:
    """Let the system probe the other side every second. A host answers for a closed socket too, for about a minute."""
    _probe(transport, idle_seconds=1, interval_seconds=1)


def _probe(transport: asyncio.BaseTransport, *, idle_seconds: int, interval_seconds: int) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("KEEPIDLE", idle_seconds), ("KEEPINTVL", interval_seconds), ("KEEPCNT", _PROBES)):
        # Not every system has all of these options.
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def age_of_one(max_age_seconds: float) -> float:
    """Return the age of one connection of many: up to a fifth below the maximum, so that not all end at once."""
    return max_age_seconds * _chance.uniform(0.8, 1.0)


def is_broken(transport: asyncio.BaseTransport) -> bool:
    """Tell whether the connection was reset or given up. asyncio does not report that while reading is paused."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))
