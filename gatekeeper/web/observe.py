"""Logins, refreshes and logouts of an application, read on their way through.

A response that may hold tokens is held until it has been read, up to a bound; what is longer, or can be seen to be
something else, passes unread. Messages pass unchanged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from gatekeeper.auth.requests import ObservedSignIn, SignInResponse
from gatekeeper.errors import KeysUnavailable, StoreUnavailable
from gatekeeper.http.headers import Headers, get
from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.models import Problem
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens import credentials
from gatekeeper.tokens.credentials import MAX_BODY_BYTES
from gatekeeper.tokens.response_tokens import ResponseReader, may_begin_tokens
from gatekeeper.web.outcome import conclude, conclude_failed, identify_as

_PLAIN: Final = frozenset({b"", b"identity"})
_ENCODINGS: Final = _PLAIN | {b"gzip", b"x-gzip", b"deflate", b"br"}
# So much of a body tells whether it may hold tokens, unless it begins with more space than that.
_BEGINNING_BYTES: Final = 256


class ResponseObserver:
    """The `send` of a request whose response may hold tokens.

    `refuse` sends a problem in place of the response that is held; the rest of that response is then dropped.
    """

    def __init__(
        self,
        send: Send,
        observation: ObservedSignIn,
        *,
        telemetry: Telemetry,
        reader: ResponseReader,
        record: RequestRecord,
        refuse: Callable[[Problem], Awaitable[None]],
    ) -> None:
        self._send = send
        self.observation = observation
        self._record = record
        self._telemetry = telemetry
        self._reader = reader
        self._refuse = refuse
        self._held: list[Message] = []
        self._content = bytearray()
        self._begun = self._may_be_page = False
        self._passes = False
        self.withheld = False

    async def __call__(self, message: Message) -> None:
        if self.withheld:
            return
        begins = message["type"] == "http.response.start"
        if begins:
            # An iterable by the ASGI specification, which may be one that can be read once.
            message = {**message, "headers": list(message.get("headers", ()))}
        if self._passes or not (self._begun or begins):
            await self._send(message)
            return
        self._held.append(message)
        if begins:
            self._begun = True
            headers = _lowered(message)
            self._may_be_page = _may_be_page(headers)
            if not _may_hold_tokens(message["status"], headers):
                await self._settle(b"")
        elif message["type"] == "http.response.body":
            self._content += message.get("body", b"")
            if len(self._content) > MAX_BODY_BYTES or (self._may_be_page and self._is_page()):
                await self._settle(b"")
            elif not message.get("more_body", False):
                await self._settle(bytes(self._content))
        else:
            await self._settle(b"")

    async def application_ended(self) -> bool:
        """Send on what is held of a response that the application never finished. False where the client got a refusal
        instead, and so is not to hear of the failure."""
        if self._begun and not (self._passes or self.withheld):
            await self._settle(bytes(self._content))
        return not self.withheld

    async def _settle(self, content: bytes) -> None:
        """Judge the response, of which no more will be read, and send it on or refuse it."""
        start = self._held[0]
        given = self._reader.read(start["status"], _lowered(start), content)
        problem = await self._judge(SignInResponse(start["status"], given))
        if problem is not None:
            self.withheld = True
            await self._refuse(problem)
            return
        self._passes = True
        for message in self._held:
            await self._send(message)
        self._held.clear()

    async def _judge(self, response: SignInResponse) -> Problem | None:
        try:
            problem = await self.observation.after(response)
            if problem is not None:
                conclude(self._record, "deny", problem.reason)
                self._record.why = problem.why
        except (StoreUnavailable, KeysUnavailable) as error:
            self._telemetry.failed(error)
            conclude_failed(self._record, error)
            problem = Problem(reason=error.reason)
        identify_as(self._record, self.observation.owner)
        return problem

    def _is_page(self) -> bool:
        """True once the beginning of the body shows that it is neither JSON nor a token."""
        return not may_begin_tokens(bytes(self._content[:_BEGINNING_BYTES]))


def _lowered(start: Message) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in start.get("headers", ())]


def _may_hold_tokens(status: int, headers: Headers) -> bool:
    """True if the body of a response is to be read."""
    length = get(headers, b"content-length")
    return (
        200 <= status < 300
        and not (get(headers, b"content-type") or b"").strip().lower().startswith(b"text/event-stream")
        and (get(headers, b"content-encoding") or b"").strip().lower() in _ENCODINGS
        and (length is None or (length.isdigit() and int(length[:20]) <= MAX_BODY_BYTES))
    )


def _may_be_page(headers: Headers) -> bool:
    """True for a body that is not called JSON, and can be looked at as it comes."""
    encoding = (get(headers, b"content-encoding") or b"").strip().lower()
    return encoding in _PLAIN and not credentials.is_json(get(headers, b"content-type") or b"")


async def run(app: ASGIApp, scope: Scope, receive: Receive, observer: ResponseObserver) -> None:
    """Run the application behind, its response observed."""
    left = False

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left |= message["type"] == "http.disconnect"
        return message

    try:
        with observer.observation.under_way():
            await app(scope, receiving, observer)
    except Exception:
        # A client that got a refusal has its response: a failure of the application's own concerns it no more.
        if await observer.application_ended():
            raise
    else:
        if not left:
            await observer.application_ended()
