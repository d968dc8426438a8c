"""A request whose session may end before its response does, and how it is then cut off.

A WebSocket gets a close frame, 4401 with the end reason; the application behind gets `websocket.disconnect`. A
response of server-sent events gets one last event, `session-ended` with the end reason as data, and then ends. Any
other response may end by itself for a short time. Then the application is cancelled and `ResponseCut` leaves the
handler, so that the server closes the connection without the end of the message, and the client can tell that a part
is missing (RFC 9112 section 8). A response that has not begun is waited for: it may be the response to the very
request that ended the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any, Final

from gatekeeper.http.headers import get
from gatekeeper.http.types import ASGIApp, Message, Receive
from gatekeeper.models import EndReason
from gatekeeper.web.respond import ResponseSender

SESSION_ENDED: Final = 4401
"""The close code of a WebSocket whose session has ended; the reason is the end reason."""

GRACE_SECONDS: Final = 0.3
"""The time that a response has to end by itself. A revocation is enforced everywhere within a second (rule 3.19)."""
# The time that the last message may take to reach a client that reads slowly.
_LAST_MESSAGE_SECONDS: Final = 1.0
# The time that an application has to leave a WebSocket: longer than its own closing handshake may take.
_LEAVING_SECONDS: Final = 6.0
_HEADS: Final = frozenset({"http.response.start", "websocket.http.response.start"})
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})
_clock = time.monotonic


class ResponseCut(Exception):
    """The session ended during a response; the rest of it is not sent."""


class ClientCutOff(OSError):
    """Raised by `send` once the client has been cut off: by the rules of ASGI, the client is gone."""


class SessionBoundRequest:
    """One admitted request on its way through the application behind: a `Stream` of `sessions/open_streams.py`.

    `close_code` is the code of the `websocket.disconnect` that the application gets.
    """

    # Class attributes: most requests never set these, and so do not pay for them.
    moved_at = 0.0
    ends_own_session = False
    reason: EndReason | None = None
    _task: asyncio.Task[Any] | None = None
    _head: Message | None = None
    _complete = False
    # Set once nothing more of the application's goes to the client.
    _cut = False
    # The number of cancellations by others when this cancelled the task.
    _others: int | None = None
    _receiver: asyncio.Task[Any] | None = None
    _last_message: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, session_id: int, receive: Receive, sender: ResponseSender, *, websocket: bool, close_code: int
    ) -> None:
        self.session_id = session_id
        self._receive = receive
        self._sender = sender
        self._websocket = websocket
        self._close_code = close_code

    async def run(self, app: ASGIApp, scope: Any) -> None:
        """Run the application until it ends or is cut off. Raises `ResponseCut` where the response must not look
        complete."""
        self._task = asyncio.current_task()
        counted = self._websocket or scope["method"] not in _WITHOUT_BODY
        try:
            await app(scope, self.receive if counted else self._receive, self.send)
        except (asyncio.CancelledError, Exception) as error:
            if not self._is_ours(error):
                raise
        finally:
            task, self._task = self._task, None
            if self._timer is not None:
                self._timer.cancel()
            if self._others is not None and task is not None:
                task.uncancel()
        if self._last_message is not None:
            await self._last_message
        if self._cut and not (self._websocket or self._complete):
            raise ResponseCut(f"the session has ended: {self.reason}")

    def _is_ours(self, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):
            return self._others is not None and self._task is not None and self._task.cancelling() == self._others + 1
        # Frameworks wrap it in an exception of their own.
        return isinstance(error, ClientCutOff) or isinstance(error.__context__, ClientCutOff)

    def end(self, reason: EndReason) -> None:
        """End the request because its session has ended. Called in the loop that runs the request; calling it again
        has no effect."""
        if self.reason is not None or self._task is None:
            return
        self.reason = reason
        if self._websocket:
            if self._head is None:
                self._cut_websocket(reason)
        elif self._head is not None:
            self._cut_response()

    async def send(self, message: Message) -> None:
        """The `send` of the application."""
        if self._cut:
            raise ClientCutOff("the session of the client has ended")
        self.moved_at = _clock()
        kind = message["type"]
        if kind in _HEADS and not isinstance(message.get("headers"), list):
            # An iterable by the ASGI specification, which may be one that can be read once.
            message = {**message, "headers": list(message.get("headers", ()))}
        await self._sender(message)
        if kind == "http.response.body":
            self._complete = not message.get("more_body", False)
        elif kind == "http.response.start":
            self._head = message
            if self.reason is not None:
                self._cut_response()
        elif kind == "websocket.http.response.start":
            # A response in place of the WebSocket.
            self._head = message

    async def receive(self) -> Message:
        """The `receive` of the application, for requests whose messages from the client count as activity."""
        if self._cut and self._websocket:
            return self._disconnect()
        self._receiver = task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        cancellations = task.cancelling()
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            # Cancelled by _cut_websocket() alone?
            if not self._cut or not self._websocket or task.cancelling() != cancellations + 1:
                raise
            task.uncancel()
            return self._disconnect()
        finally:
            self._receiver = None
        self.moved_at = _clock()
        return message

    def _disconnect(self) -> Message:
        return {"type": "websocket.disconnect", "code": self._close_code, "reason": str(self.reason)}

    def _cut_websocket(self, reason: EndReason) -> None:
        self._cut = True
        self._send_last({"type": "websocket.close", "code": SESSION_ENDED, "reason": reason.value})
        if self._receiver is not None:
            self._receiver.cancel()
        self._timer = asyncio.get_running_loop().call_later(_LEAVING_SECONDS, self._cancel)

    def _cut_response(self) -> None:
        if self._complete:
            return
        assert self._head is not None  # noqa: S101 - nothing is cut before it has begun
        loop = asyncio.get_running_loop()
        if not is_of_events(self._head.get("headers", ())):
            self._timer = loop.call_later(GRACE_SECONDS, self._cut_off)
            return
        assert self.reason is not None  # noqa: S101
        self._send_last({"type": "http.response.body", "body": last_event(self.reason), "more_body": False})
        self._cut = True
        # Not from within the task, which would then be cancelled at its next wait, maybe outside of the application.
        loop.call_soon(self._cancel)

    def _cut_off(self) -> None:
        if not self._complete:
            self._cut = True
            self._cancel()

    def _cancel(self) -> None:
        """Cancel the application. Called by the event loop only, so the task is waiting for something inside the
        application and is cancelled there."""
        if self._task is not None and self._others is None:
            self._others = self._task.cancelling()
            self._task.cancel()

    def _send_last(self, message: Message) -> None:
        async def send_last() -> None:
            # A client that has left, or does not read, gets none.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LAST_MESSAGE_SECONDS):
                    await self._sender(message)
                self._complete = True

        self._last_message = asyncio.create_task(send_last())


def is_of_events(sent: Iterable[tuple[bytes, bytes]]) -> bool:
    """True if a response with these headers is a stream of events to which one can be added."""
    headers = [(name.lower(), value) for name, value in sent]
    kind = (get(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    encoding = (get(headers, b"content-encoding") or b"identity").strip().lower()
    return kind == b"text/event-stream" and encoding == b"identity" and get(headers, b"content-length") is None


def last_event(reason: EndReason) -> bytes:
    """The event that tells of the session's end. It begins with a blank line, which ends an unfinished event (WHATWG
    HTML section 9.2.6)."""
    return f"\n\nevent: session-ended\ndata: {reason}\n\n".encode()
