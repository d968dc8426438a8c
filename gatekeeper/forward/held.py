"""A response of the backend that is held back while it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.upstream.interface import BackendConnection, Failure, ResponseCallbacks


class HoldingForward(ResponseCallbacks, Protocol):
    """The `Forward` whose response is held."""

    def begin_response(self, head: ResponseHead) -> None: ...

    def forget_connection(self) -> None: ...

    def done(self) -> bool: ...


class HeldResponse:
    """Receives a response in place of its forward, and gives it on at `release`. The caller pauses the connection, and
    then this is what had arrived until then."""

    takes_full_response = False

    def __init__(self, forward: HoldingForward, connection: BackendConnection) -> None:
        self._forward = forward
        self._connection = connection
        self._events: list[Callable[[], None]] = []
        self._is_over = False
        connection.hand_over(self)

    def on_informational(self, head: ResponseHead) -> None:
        """Do nothing: none follows the head."""

    def on_head(self, head: ResponseHead) -> None:
        """Do nothing: it is held already."""

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        """Do nothing: it is held already."""

    def on_data(self, data: bytes) -> None:
        self._events.append(partial(self._forward.on_data, data))

    def on_end(self, trailers: HeaderList) -> None:
        self._end_with(partial(self._forward.on_end, trailers))

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        self._end_with(partial(self._forward.on_failure, error, untouched=untouched))

    def on_batch_end(self) -> None:
        """Do nothing: nothing is sent yet."""

    def on_writable(self) -> None:
        self._forward.on_writable()

    def _end_with(self, event: Callable[[], None]) -> None:
        # The connection may serve another request by now.
        self._is_over = True
        self._forward.forget_connection()
        self._events.append(event)

    def release(self, head: ResponseHead) -> None:
        """Give the response on, as far as it has arrived; the rest goes to the forward itself."""
        self._forward.begin_response(head)
        if not self._is_over:
            self._connection.hand_over(self._forward)
        for event in self._events:
            if self._forward.done():
                return
            event()
        if not (self._is_over or self._forward.done()):
            self._connection.resume_reading()
            self._forward.on_batch_end()
