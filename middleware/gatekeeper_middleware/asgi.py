"""Gatekeeper as middleware: the host for any ASGI 3 application under any ASGI server."""

from __future__ import annotations

from gatekeeper.build import build
from gatekeeper.http.types import ASGIApp, Receive, Scope, Send
from gatekeeper.settings import Settings, load
from gatekeeper.web.engine import Engine
from gatekeeper.web.handler import Handler
from gatekeeper.web.lifespan import with_lifespan
from gatekeeper.web.request import ENGINE


class GatekeeperMiddleware:
    """Checks the session of every request before it reaches an ASGI 3 application.

    `settings` are read from the environment by default. Raises `ConfigError`, which lists every problem with them. A
    test may pass an `engine` that it has started itself.
    """

    def __init__(self, app: ASGIApp, settings: Settings | None = None, *, engine: Engine | None = None) -> None:
        self._engine = engine or build(settings or load(), mode="middleware", application=app)
        engine = self._engine
        handler = Handler(
            app,
            runtime=engine.runtime,
            pipeline=engine.pipeline,
            responder=engine.responder,
            rules=engine.rules,
            streams=engine.streams,
            telemetry=engine.telemetry,
            mounted=True,
            extras={ENGINE: self._engine},
        )
        self._app = with_lifespan(handler, self._engine.runtime, around=app)

    def __repr__(self) -> str:
        return f"<GatekeeperMiddleware {self._engine!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
