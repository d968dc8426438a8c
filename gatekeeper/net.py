"""Whether the other side of a connection is still there, for connections on which nothing may be read for long."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Final

CLIENT_LEFT: Final = "gatekeeper.websocket"
"""The extension of a `websocket` scope by which a server tells that its client is gone, however many messages still
wait to be received: `scope["extensions"][LEFT]["left"]` is an `asyncio.Event`."""

# A host that died says nothing; it is asked after a minute of silence, and given up two minutes later.
_IDLE_SECONDS: Final = 60
_INTERVAL_SECONDS: Final = 20
_PROBES: Final = 6


def enable_keepalive(transport: asyncio.BaseTransport) -> None:
    """Has the system ask the other side of a silent TCP connection whether it is there (RFC 9293 section 3.8.4)."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("KEEPIDLE", _IDLE_SECONDS), ("KEEPINTVL", _INTERVAL_SECONDS), ("KEEPCNT", _PROBES)):
        # Not every system has them all.
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def is_broken(transport: asyncio.BaseTransport) -> bool:
    """Whether the connection is reset or given up, which who does not read is not told."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))
