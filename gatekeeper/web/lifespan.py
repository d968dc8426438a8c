"""The runtime, started and closed with the application behind (ASGI lifespan)."""

from __future__ import annotations

from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.runtime import Runtime


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


async def _live(app: ASGIApp, runtime: Runtime, scope: Scope, receive: Receive, send: Send) -> None:
    async def receiving() -> Message:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await runtime.start()
        return message

    async def sending(message: Message) -> None:
        if message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
            await runtime.aclose()
        await send(message)

    await app(scope, receiving, sending)
