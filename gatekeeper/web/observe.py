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


class ResponseReading:
    """One response that may hold tokens, as far as it is read, and the judgement on it."""

    def __init__(
        self, observation: ObservedSignIn, *, telemetry: Telemetry, reader: ResponseReader, record: RequestRecord
    ) -> None:
        self.observation = observation
        self._record = record
        self._telemetry = telemetry
        self._reader = reader
        self._status = 0
        self._headers: Headers = ()
        self._content = bytearray()
        self._may_be_page = False

    def begin(self, status: int, headers: Headers) -> bool:
        """Take the head of the response. Returns True if the body is to be read."""
        self._status, self._headers = status, [(name.lower(), value) for name, value in headers]
        self._may_be_page = _may_be_page(self._headers)
        return _may_hold_tokens(status, self._headers)

    def add(self, part: bytes) -> bool:
        """Take a part of the body. Returns True if more is to be read; where not, nothing of it counts."""
        self._content += part
        if len(self._content) <= MAX_BODY_BYTES and not (self._may_be_page and self._is_page()):
            return True
        self._content.clear()
        return False

    async def judge(self) -> Problem | None:
        """Return the problem for which the response is refused."""
        given = self._reader.read(self._status, self._headers, bytes(self._content))
        try:
            problem = await self.observation.after(SignInResponse(self._status, given))
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


class ResponseObserver:
    """The `send` of a request whose response may hold tokens.

    `refuse` sends a problem in place of the response that is held; the rest of that response is then dropped.
    """

    def __init__(self, send: Send, reading: ResponseReading, *, refuse: Callable[[Problem], Awaitable[None]]) -> None:
        self._send = send
        self._reading = reading
        self._refuse = refuse
        self._held: list[Message] = []
        self._begun = self._passes = False
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
            more = self._reading.begin(message["status"], message["headers"])
        elif message["type"] == "http.response.body":
            more = self._reading.add(message.get("body", b"")) and message.get("more_body", False)
        else:
            more = False
        if not more:
            await self._settle()

    async def application_ended(self) -> bool:
        """Send on what is held of a response that the application never finished. False where the client got a refusal
        instead, and so is not to hear of the failure."""
        if self._begun and not (self._passes or self.withheld):
            await self._settle()
        return not self.withheld

    async def _settle(self) -> None:
        """Judge the response, of which no more will be read, and send it on or refuse it."""
        problem = await self._reading.judge()
        if problem is not None:
            self.withheld = True
            await self._refuse(problem)
            return
        self._passes = True
        for message in self._held:
            await self._send(message)
        self._held.clear()


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


async def run(
    app: ASGIApp, scope: Scope, receive: Receive, observer: ResponseObserver, observation: ObservedSignIn
) -> None:
    """Run the application behind, its response observed."""
    left = False

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left |= message["type"] == "http.disconnect"
        return message

    try:
        with observation.under_way():
            await app(scope, receiving, observer)
    except Exception:
        # A client that got a refusal has its response: a failure of the application's own concerns it no more.
        if await observer.application_ended():
            raise
    else:
        if not left:
            await observer.application_ended()
