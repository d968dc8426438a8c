"""A request body that goes to the backend as it arrives, by callbacks."""

from __future__ import annotations

import asyncio
from typing import Final

from gatekeeper.http.forwarding import request_trailers
from gatekeeper.server import Exchange
from gatekeeper.upstream.interface import BackendConnection

# RFC 9110 section 10.1.1: a client that expects 100 must not wait forever, because servers may not know it.
_EXPECT_SECONDS: Final = 1.0


class Upload:
    """The body of one request, from its client's connection to the backend's.

    While the backend's is full, nothing is taken from the client's, which then reads no more after a bound. A body that
    the backend no longer wants, after an early response, is taken and dropped.
    """

    __slots__ = ("_connection", "_exchange", "_own_headers", "_timer")

    def __init__(self, exchange: Exchange, own_headers: frozenset[bytes]) -> None:
        self._exchange = exchange
        self._own_headers = own_headers
        self._connection: BackendConnection | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: BackendConnection, *, waits: bool) -> None:
        """Send what has arrived, and the rest when it arrives. With `waits` not before the backend asks for it, or a
        second has passed."""
        self._connection = connection
        if waits:
            self._timer = asyncio.get_running_loop().call_later(_EXPECT_SECONDS, self.go_on)
        else:
            self.proceed()

    def go_on(self) -> None:
        """Wait no longer: the backend asks for the body, responds, or was silent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.proceed()

    def proceed(self) -> None:
        """Pass on what can be passed on now: something has arrived, or the backend takes more."""
        connection, exchange = self._connection, self._exchange
        if connection is None or self._timer is not None or (connection.uploading and connection.is_full):
            return
        part = exchange.take_body()
        if connection.uploading:
            if part:
                connection.write(part)
            if exchange.has_arrived:
                connection.finish(request_trailers(exchange.trailers, self._own_headers))
        if exchange.has_arrived:
            self._connection = None
        elif connection.uploading or not exchange.waits_for_permission:
            # What the backend does not want is read too: only so is it noticed when the client leaves.
            exchange.want_body()

    def stop(self) -> None:
        """Let go of both connections."""
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
