"""The HTTP/1.1 connections to one backend: kept open, bounded, and given out in order of arrival."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.net import age_of_one
from gatekeeper.upstream.connector import Connector
from gatekeeper.upstream.http1 import Http1Connection

# gunicorn closes idle connections after 2 s, the shortest time among common servers (node and uvicorn: 5 s). A request
# must not cross with the close (RFC 9112 section 9.3.1).
IDLE_SECONDS: Final = 1.5
# The least time between two looks for connections that were idle for too long.
_SWEEP_SECONDS: Final = 0.05
_CLOSING_TURNS: Final = 4
_now = time.monotonic


class Http1Pool:
    """At most `max_connections` connections. Each is kept idle for `IDLE_SECONDS` or what the backend's `Keep-Alive`
    allows, and none serves another request beyond `max_age_seconds`.

    A connection is opened only where none is idle, and the one that was used last serves next. So the idle ones are no
    more than were in use at once within `IDLE_SECONDS`, and need no other bound. If none is free, a request waits for
    `wait_seconds` at most, in order of arrival. Used from one event loop.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        timeout_seconds: float,
        wait_seconds: float,
        max_connections: int,
        max_age_seconds: float = 300.0,
    ) -> None:
        self._connector = connector
        self._timeout_seconds = timeout_seconds
        self._wait_seconds = wait_seconds
        self._max_connections = max_connections
        self._max_age_seconds = max_age_seconds
        # In the order of their last use. A dictionary, because any of them may end at any time.
        self._idle: dict[Http1Connection, None] = {}
        self._all: set[Http1Connection] = set()
        # A waiter gets a connection, or None: the room to open one.
        self._waiting: deque[asyncio.Future[Http1Connection | None]] = deque()
        self._opened = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Pool [{self._opened} open, {len(self._idle)} idle, {len(self._waiting)} waiting]>"

    def take_idle(self) -> Http1Connection | None:
        """Return an idle connection at once, or None. While one is idle, no request is waiting."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable() and connection.idle_until > _now():
                return connection
            connection.abort()
        return None

    async def acquire(self, *, fresh: bool = False) -> Http1Connection:
        """Return a connection, idle or new; with `fresh` a new one while there is room. Raises UpstreamUnavailable or
        UpstreamTimeout."""
        while True:
            connection = None if fresh else self.take_idle()
            if connection is not None:
                return connection
            if self._opened < self._max_connections:
                self._opened += 1
            else:
                connection = await self._wait_turn()
            if connection is None:
                return await self._open()
            if connection.is_usable():
                return connection
            connection.abort()

    def adopt(self, transport: asyncio.Transport) -> None:
        """Keep a new connection that was opened elsewhere."""
        connection = self._make()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self._opened += 1
        self._all.add(connection)
        self._keep(connection)

    async def aclose(self) -> None:
        """Close everything, busy connections too."""
        self._is_closed = True
        for connection in list(self._all):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        # Transports close within the next turns of the loop, which may end after this coroutine.
        for _ in range(_CLOSING_TURNS):
            await asyncio.sleep(0)

    async def _open(self) -> Http1Connection:
        """Open a connection in the room that was reserved for it."""
        try:
            connection = await self._connector.connect(self._make)
        except BaseException:
            self._make_room()
            raise
        self._all.add(connection)
        if self._is_closed or connection.is_lost:
            self._forget(connection)
            connection.abort()
            raise UpstreamUnavailable("the backend closed the connection", kind="connect")
        return connection

    def _make(self) -> Http1Connection:
        connection = Http1Connection(timeout_seconds=self._timeout_seconds, on_idle=self._keep, on_lost=self._forget)
        connection.expires_at = _now() + age_of_one(self._max_age_seconds)
        return connection

    async def _wait_turn(self) -> Http1Connection | None:
        """Wait for a connection, or for the room to open one."""
        waiter: asyncio.Future[Http1Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if not waiter.cancelled():
                # It arrived in the same moment: pass it on.
                self._give_back(waiter.result())
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout("no connection to the backend came free for too long") from error
            raise

    def _give_back(self, connection: Http1Connection | None) -> None:
        if connection is None:
            self._make_room()
        elif not connection.is_lost:
            self._keep(connection)

    def _next_waiter(self) -> asyncio.Future[Http1Connection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _make_room(self) -> None:
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._opened -= 1

    def _keep(self, connection: Http1Connection) -> None:
        until = (now := _now()) + IDLE_SECONDS
        if (allowed := connection.parser.idle_seconds) is not None and allowed < IDLE_SECONDS:
            until = now + allowed
        if connection.expires_at < until:
            until = connection.expires_at
        if until <= now:
            connection.abort()
            return
        connection.idle_until = until
        if self._waiting and (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close connections that were idle for too long."""
        now = _now()
        for connection in [each for each in self._idle if each.idle_until <= now]:
            connection.abort()
        self._sweeper = None
        if self._idle:
            due_at = min(each.idle_until for each in self._idle)
            self._sweeper = asyncio.get_running_loop().call_later(max(_SWEEP_SECONDS, due_at - now), self._sweep)

    def _forget(self, connection: Http1Connection) -> None:
        if connection not in self._all:
            # It was never given out; `_open` handles it.
            return
        self._all.remove(connection)
        self._idle.pop(connection, None)
        self._make_room()
