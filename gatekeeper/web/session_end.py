"""A request whose session may end while its answer is under way, and how it is cut off then.

- A WebSocket gets a close frame, 4401 with the end reason; the application behind gets `websocket.disconnect`.
- An answer of server-sent events gets one last event, `session-ended` with the end reason as data, and its end.
- Any other answer is left some time to end by itself: one that is short is whole. Then the application is cancelled and
  `ResponseCut` leaves the middleware, so that the server closes the connection without the end of the message, and the
  client can tell a part from the whole (RFC 9112 section 8). An answer that has not begun is waited for: it may be that
  of the request whose own doing ended the session, however far that went round.
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

LEFT_SECONDS: Final = 0.3
"""Until another answer than one of events is cut. An end is to be everywhere within a second."""
# How long a client that reads slowly may hold up its own last word.
_LAST_WORD_SECONDS: Final = 1.0
# How long an application has to leave a WebSocket by itself: longer than its own closing handshake may take.
_LEAVING_SECONDS: Final = 6.0
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})
_clock = time.monotonic


class ResponseCut(Exception):
    """The session of an answer under way has ended; the rest of it is not sent."""


class ClientCutOff(OSError):
    """Raised by `send` once the client has been cut off: to ASGI, the client is gone."""


class SessionBoundRequest:
    """One admitted request on its way through the application behind: a `Stream` of `sessions/open_streams.py`.

    `close_code` is the code with which, as a WebSocket's application is told, its client has closed.
    """

    # What most requests never need costs them nothing: it is set when it is.
    moved_at = 0.0
    ends_own_session = False
    reason: EndReason | None = None
    _task: asyncio.Task[Any] | None = None
    _head: Message | None = None
    _complete = False
    # From here on nothing of the application's reaches the client.
    _cut = False
    # How often others had cancelled the task when this did.
    _others: int | None = None
    _receiver: asyncio.Task[Any] | None = None
    _last_word: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, session_id: int, receive: Receive, reply: ResponseSender, *, websocket: bool, close_code: int
    ) -> None:
        self.session_id = session_id
        self._receive = receive
        self._reply = reply
        self._websocket = websocket
        self._close_code = close_code

    async def run(self, app: ASGIApp, scope: Any) -> None:
        """The application, until it ends or is cut off. Raises `ResponseCut` where an answer must not seem whole."""
        self._task = asyncio.current_task()
        counted = self._websocket or scope["method"] not in _WITHOUT_BODY
        try:
            await app(scope, self.receive if counted else self._receive, self.send)
        except (asyncio.CancelledError, Exception) as error:
            if not self._is_our_doing(error):
                raise
        finally:
            task, self._task = self._task, None
            if self._timer is not None:
                self._timer.cancel()
            if self._others is not None and task is not None:
                task.uncancel()
        if self._last_word is not None:
            await self._last_word
        if self._cut and not (self._websocket or self._complete):
            raise ResponseCut(f"the session has ended: {self.reason}")

    def _is_our_doing(self, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):
            return self._others is not None and self._task is not None and self._task.cancelling() == self._others + 1
        # Frameworks make one of their own of it.
        return isinstance(error, ClientCutOff) or isinstance(error.__context__, ClientCutOff)

    def end(self, reason: EndReason) -> None:
        """The session is over. To be called in the loop that runs the request; more than once does no harm."""
        if self.reason is not None or self._task is None:
            return
        self.reason = reason
        if self._websocket:
            if self._head is None:
                self._cut_websocket(reason)
        elif self._head is not None:
            self._cut_answer()

    async def send(self, message: Message) -> None:
        """The application's."""
        if self._cut:
            raise ClientCutOff("the session of the client has ended")
        self.moved_at = _clock()
        await self._reply(message)
        kind = message["type"]
        if kind == "http.response.body":
            self._complete = not message.get("more_body", False)
        elif kind == "http.response.start":
            self._head = message
            if self.reason is not None:
                self._cut_answer()
        elif kind == "websocket.http.response.start":
            # An answer, and no WebSocket.
            self._head = message

    async def receive(self) -> Message:
        """The application's, where what the client sends is looked at."""
        if self._cut and self._websocket:
            return self._disconnect()
        self._receiver = task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        cancellations = task.cancelling()
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            # Called off by _cut_websocket(), and by nobody else?
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
        self._say({"type": "websocket.close", "code": SESSION_ENDED, "reason": reason.value})
        if self._receiver is not None:
            self._receiver.cancel()
        self._timer = asyncio.get_running_loop().call_later(_LEAVING_SECONDS, self._cancel)

    def _cut_answer(self) -> None:
        if self._complete:
            return
        assert self._head is not None  # noqa: S101 - nothing is cut before it has begun
        loop = asyncio.get_running_loop()
        if not is_of_events(self._head.get("headers", ())):
            self._timer = loop.call_later(LEFT_SECONDS, self._cut_off)
            return
        assert self.reason is not None  # noqa: S101
        self._say({"type": "http.response.body", "body": last_event(self.reason), "more_body": False})
        self._cut = True
        # Not from within the task, which would be cancelled wherever it waits next: maybe outside of the application.
        loop.call_soon(self._cancel)

    def _cut_off(self) -> None:
        if not self._complete:
            self._cut = True
            self._cancel()

    def _cancel(self) -> None:
        """Called by the loop alone: so the task waits for something inside the application, and is cancelled there."""
        if self._task is not None and self._others is None:
            self._others = self._task.cancelling()
            self._task.cancel()

    def _say(self, message: Message) -> None:
        async def say() -> None:
            # Whoever has left, or does not read, needs none.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LAST_WORD_SECONDS):
                    await self._reply(message)
                self._complete = True

        self._last_word = asyncio.create_task(say())


def is_of_events(sent: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether to an answer with these headers an event, and its end, can be added."""
    headers = [(name.lower(), value) for name, value in sent]
    kind = (get(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    encoding = (get(headers, b"content-encoding") or b"identity").strip().lower()
    return kind == b"text/event-stream" and encoding == b"identity" and get(headers, b"content-length") is None


def last_event(reason: EndReason) -> bytes:
    """That the session has ended. A blank line first: it ends whatever event was under way (WHATWG HTML section
    9.2.6)."""
    return f"\n\nevent: session-ended\ndata: {reason}\n\n".encode()
