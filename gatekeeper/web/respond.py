"""Answers that Gatekeeper gives itself, over HTTP and before a WebSocket is accepted. The one door for them."""

from __future__ import annotations

from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final

import msgspec

from gatekeeper.http.headers import REQUEST_ID, HeaderList
from gatekeeper.http.types import Message, Send
from gatekeeper.models import Problem
from gatekeeper.telemetry.request_record import RequestRecord

encode: Final = msgspec.json.Encoder().encode
OWN_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
JSON: Final = (b"content-type", b"application/json; charset=utf-8")
_RETRY_AFTER_SECONDS: Final = b"1"
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})


class ResponseSender:
    """The `send` of one request: puts the request id on the answer, sees its status and size, and knows whether it has
    begun, so that nothing is ever answered twice."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._exchange = record
        self.started = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in _STARTS:
            self.started = True
            # Unless the server has answered in the middle of the body, and forgets what comes now.
            self._exchange.status = self._exchange.status or (101 if kind == "websocket.accept" else message["status"])
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
            headers.append((REQUEST_ID, self._exchange.request_id.encode()))
            message = {**message, "headers": headers}
        elif kind in {"http.response.body", "websocket.http.response.body"}:
            self._exchange.bytes_out += len(message.get("body", b""))
        elif kind == "websocket.close" and not self.started:
            # A server verify_queue a close before the handshake into 403 (ASGI specification).
            self.started = True
            self._exchange.status = 403
        await self._send(message)


def challenge(problem: Problem, *, token_sent: bool) -> bytes:
    """`WWW-Authenticate` (RFC 6750 section 3): without error code where no token was sent."""
    if not token_sent:
        return b"Bearer"
    return f'Bearer error="invalid_token", error_description="{problem.text}"'.encode()


def problem_headers(problem: Problem, *, token_sent: bool) -> HeaderList:
    """What an error answer carries beside its body."""
    if problem.reason.status == 401:
        return [(b"www-authenticate", challenge(problem, token_sent=token_sent))]
    if problem.retry_after_seconds is not None:
        return [(b"retry-after", b"%d" % problem.retry_after_seconds)]
    if problem.reason.status in {429, 503}:
        return [(b"retry-after", _RETRY_AFTER_SECONDS)]
    return []


async def send_answer(
    reply: ResponseSender, *, status: int, body: Any, headers: HeaderList, head: bool, websocket: bool, extension: bool
) -> None:
    """One answer, with `body` as JSON, or without one where the status is 204. A WebSocket that is refused gets the
    same answer where the server can send it (`extension`: `websocket.http.response`), else it is closed before the
    handshake, which is a 403."""
    if websocket and not extension:
        await reply({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    content = b"" if status == 204 else encode(body)
    prefix = "websocket." if websocket else ""
    # RFC 9110 section 6.6.1: whoever makes an answer and has a clock dates it.
    start = [(b"date", formatdate(usegmt=True).encode()), *OWN_HEADERS, *headers]
    if status != 204:
        start.append(JSON)
        start.append((b"content-length", b"%d" % len(content)))
    # OSError: the client is gone, and nobody else is to be told (ASGI specification, since HTTP 2.4).
    with suppress(OSError):
        await reply({"type": f"{prefix}http.response.start", "status": status, "headers": start})
        await reply({"type": f"{prefix}http.response.body", "body": b"" if head else content})
