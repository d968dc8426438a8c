"""Responses that Gatekeeper makes itself, over HTTP and before a WebSocket is accepted. All of them are sent here."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final

import msgspec

from gatekeeper import messages
from gatekeeper.dialects.base import Operation, Wording
from gatekeeper.dialects.router import Router
from gatekeeper.http.headers import REQUEST_ID, HeaderList, Headers
from gatekeeper.http.origins import Origins
from gatekeeper.http.types import Message, Scope, Send
from gatekeeper.models import Problem
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.web.outcome import Refused, Served
from gatekeeper.web.request import IncomingRequest

encode: Final = msgspec.json.Encoder().encode
OWN_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
JSON: Final = (b"content-type", b"application/json; charset=utf-8")
# Where nothing tells when a request will pass: drawn for each response, so that clients that were refused at the same
# moment do not return at the same moment.
_RETRY_AFTER_SECONDS: Final = (1, 5)
_chance: Final = random.Random()  # noqa: S311 - no secret
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})


class ResponseSender:
    """The `send` of one request: adds the request id to the response, records status and size, and knows whether a
    response has begun, so that none is ever sent twice."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._record = record
        self.started = False
        # Called with the head of a 2xx or 3xx response before it is sent.
        self.before_head: Callable[[int, Headers], Awaitable[None]] | None = None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in _STARTS:
            self.started = True
            # Unless the server has rejected the rest of the body, and drops this response.
            self._record.status = self._record.status or (101 if kind == "websocket.accept" else message["status"])
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
            if self.before_head is not None:
                await self.before_head(self._record.status, headers)
            headers.append((REQUEST_ID, self._record.request_id.encode()))
            message = {**message, "headers": headers}
        elif kind in {"http.response.body", "websocket.http.response.body"}:
            self._record.bytes_out += len(message.get("body", b""))
        elif kind == "websocket.close" and not self.started:
            # A server turns a close before the handshake into 403 (ASGI specification).
            self.started = True
            self._record.status = 403
        await self._send(message)


def challenge(problem: Problem, *, token_sent: bool) -> bytes:
    """The value of `WWW-Authenticate` (RFC 6750 section 3): no error code where no token was sent."""
    if not token_sent and problem.max_age is None:
        return b"Bearer"
    error, age = "invalid_token", ""
    if problem.max_age is not None:
        # RFC 9470 section 3.
        error, age = problem.reason.code, f", max_age={problem.max_age}"
    return f'Bearer error="{error}", error_description="{problem.text}"{age}'.encode()


def problem_headers(problem: Problem, *, token_sent: bool) -> HeaderList:
    """The headers of an error response that follow from the problem."""
    if problem.reason.status == 401:
        return [(b"www-authenticate", challenge(problem, token_sent=token_sent))]
    if problem.retry_after_seconds is not None:
        return [(b"retry-after", b"%d" % problem.retry_after_seconds)]
    if problem.reason.status in {429, 503}:
        return [(b"retry-after", b"%d" % _chance.randint(*_RETRY_AFTER_SECONDS))]
    return list(problem.headers)


class Responder:
    """Words outcomes in the dialect and language of the request, and sends them."""

    def __init__(self, router: Router, origins: Origins, *, language: str) -> None:
        self._router = router
        self._origins = origins
        self._language = language

    def __repr__(self) -> str:
        return f"<Responder in {self._language}>"

    def language_of(self, incoming: IncomingRequest) -> str:
        """The language of the request's headers, else the configured one."""
        return messages.preferred_language(incoming.language_header, self._language)

    def wording(
        self,
        incoming: IncomingRequest,
        operation: Operation | None = None,
        *,
        members: Mapping[str, Any] | None = None,
        language: str | None = None,
    ) -> Wording:
        """The wording of a response: in `language`, else in the one that `members` of the body ask for, else in that
        of the headers."""
        asked = (members or {}).get("language")
        if language is None and isinstance(asked, str):
            language = messages.supported_language(asked)
        return Wording(
            request_id=incoming.request_id,
            now=time.time_ns() // 1000,
            language=language or self.language_of(incoming),
            operation=operation,
        )

    def error_body(self, refused: Refused, incoming: IncomingRequest) -> Any:
        """The body of an error response, not yet JSON."""
        wording = self.wording(incoming, refused.operation, language=refused.language)
        return self._router.word(refused.problem, refused.dialect, wording)

    def cors_headers(self, headers: Headers) -> HeaderList:
        """The headers that let pages of a listed origin read a response of Gatekeeper's own."""
        return self._origins.cors_headers(headers)

    async def send(
        self, scope: Scope, sender: ResponseSender, incoming: IncomingRequest, outcome: Refused | Served
    ) -> None:
        """Send one outcome as the response to `incoming`."""
        body: Any = None
        if isinstance(outcome, Refused):
            status, body = outcome.problem.reason.status, self.error_body(outcome, incoming)
            headers = problem_headers(outcome.problem, token_sent=outcome.token_sent)
        elif outcome.response is None:
            status, headers = 204, list(outcome.headers)
        else:
            status, body, headers = outcome.response.status, outcome.response.body, list(outcome.headers)
        if not isinstance(outcome, Served) or outcome.response is not None:
            headers += self.cors_headers(incoming.headers)
        await _send(
            sender,
            status=status,
            body=body,
            headers=headers,
            head=incoming.method == "HEAD",
            websocket=incoming.websocket,
            extension="websocket.http.response" in scope.get("extensions", {}),
        )


async def _send(
    sender: ResponseSender, *, status: int, body: Any, headers: HeaderList, head: bool, websocket: bool, extension: bool
) -> None:
    """Send one response with `body` as JSON, or without one where the status is 204. A refused WebSocket gets the same
    response where the server can send it (`extension`: `websocket.http.response`), else it is closed before the
    handshake, which the server turns into a 403."""
    if websocket and not extension:
        await sender({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    content = b"" if status == 204 else encode(body)
    prefix = "websocket." if websocket else ""
    # RFC 9110 section 6.6.1: an origin server with a clock dates its responses.
    start = [(b"date", formatdate(usegmt=True).encode()), *OWN_HEADERS, *headers]
    if status != 204:
        start.append(JSON)
        start.append((b"content-length", b"%d" % len(content)))
    # OSError: the client is gone, and there is no one else to respond to (ASGI specification, since HTTP 2.4).
    with suppress(OSError):
        await sender({"type": f"{prefix}http.response.start", "status": status, "headers": start})
        await sender({"type": f"{prefix}http.response.body", "body": b"" if head else content})
