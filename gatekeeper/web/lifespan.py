"""The runtime, started and closed with the application behind (ASGI lifespan)."""

from __future__ import annotations

from typing import Final

from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.runtime import Runtime
from gatekeeper.store.embedded import EmbeddedStoreFailed

_BODY: Final = b'{"detail":"The service is not configured; its log says what is wrong","code":"internal_error"}'
_HEADERS: Final = [
    *((b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY)), (b"retry-after", b"5")),
    *((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")),
]
# RFC 6455, registry of close codes.
_TRY_AGAIN_LATER: Final = 1013


def with_lifespan(handler: ASGIApp, runtime: Runtime, *, around: ASGIApp) -> ASGIApp:
    """`handler` for `http` and `websocket`; a lifespan is that of `around`, the application behind, and starts and
    closes the runtime with it. Other scopes go to `around` untouched. Under a server without lifespan the first request
    starts the runtime."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            await handler(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(around, runtime, scope, receive, send)
        else:
            await around(scope, receive, send)

    return app


async def refuse_start(problem: str, receive: Receive, send: Send) -> None:
    """Answer a lifespan whose application cannot serve: the server logs the problem and does not start."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": problem})


async def unavailable(scope: Scope, send: Send) -> None:
    """Answer a request that cannot be judged at all with 503. What is wrong is for the operator's log."""
    if scope["type"] == "http":
        kind = "http.response"
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        kind = "websocket.http.response"
    else:
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        return
    await send({"type": f"{kind}.start", "status": 503, "headers": _HEADERS})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else _BODY})


class _NotStarted(Exception):
    """Takes the lifespan out of the application, after the server got `startup.failed`."""


async def _live(app: ASGIApp, runtime: Runtime, scope: Scope, receive: Receive, send: Send) -> None:
    failed = False

    async def receiving() -> Message:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await runtime.start()
            except EmbeddedStoreFailed as error:
                nonlocal failed
                failed = True
                await runtime.aclose()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise _NotStarted from None
        return message

    async def sending(message: Message) -> None:
        if message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
            await runtime.aclose()
        if not failed:
            await send(message)

    try:
        await app(scope, receiving, sending)
    except BaseException:
        # Whatever the application makes of it, the server has heard why.
        if not failed:
            raise
