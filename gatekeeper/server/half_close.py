"""Clients that have closed their sending side and wait for a response, as `nc -N` does."""

from __future__ import annotations

import asyncio
from typing import Final

from gatekeeper.net import is_broken, probe_often

_LOOK_SECONDS: Final = 1.0


class HalfClose:
    """Watches whether such a client is still there. The end of its data is no departure, and an event loop reports
    nothing of a connection whose end it has read: a reset would be noticed with the next write, and a response may be
    long in coming. The transport is aborted once the connection is broken."""

    __slots__ = ("_loop", "_timer", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        probe_often(transport)
        self._timer = loop.call_later(_LOOK_SECONDS, self._look)

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if is_broken(self._transport):
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
