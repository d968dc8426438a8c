"""Gatekeeper as middleware: the host for any ASGI 3 application under any ASGI server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

from gatekeeper.build import build
from gatekeeper.errors import ConfigError
from gatekeeper.http.types import ASGIApp, Receive, Scope, Send
from gatekeeper.runtime import Runtime
from gatekeeper.settings import Settings, load
from gatekeeper.web.engine import Engine
from gatekeeper.web.handler import Handler
from gatekeeper.web.lifespan import refuse_start, unavailable, with_lifespan
from gatekeeper.web.request import ENGINE

_log = logging.getLogger("gatekeeper")
_OTHER_LOOP: Final = "Gatekeeper needs an event loop of asyncio, and this one is of another kind"


class _Begun(NamedTuple):
    """The application for one event loop, and the generator that ends with the loop."""

    app: ASGIApp
    ending: AsyncGenerator[None, None]


class GatekeeperMiddleware:
    """Checks the session of every request before it reaches an ASGI 3 application.

    `settings` are read from the environment by default. If they are wrong, the application does not start: the lifespan
    fails with every problem, and requests are 503. A test may pass an `engine` that it has started itself.
    """

    def __init__(self, app: ASGIApp, settings: Settings | None = None, *, engine: Engine | None = None) -> None:
        self._application = app
        self._settings = settings
        self._is_given = engine is not None
        # Connections and tasks belong to an event loop, so each loop has an engine of its own.
        self._begun: dict[asyncio.AbstractEventLoop, _Begun] = {}
        self._current: tuple[asyncio.AbstractEventLoop | None, ASGIApp] = (None, app)
        self._is_used = False
        self._problem = ""
        self._has_logged = False
        try:
            self._engine = engine or self._build()
        except ConfigError as error:
            # Frameworks construct middleware when their lifespan begins, where servers take an exception for "has no
            # lifespan" and serve all the same.
            self._problem = f"Gatekeeper's settings are wrong:\n{error}"

    def __repr__(self) -> str:
        return f"<GatekeeperMiddleware {'with wrong settings' if self._problem else repr(self._engine)}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            await self._refuse(_OTHER_LOOP, scope, receive, send)
            return
        known, app = self._current
        if known is not loop:
            if self._problem:
                await self._refuse(self._problem, scope, receive, send)
                return
            app = await self._meet(loop)
        await app(scope, receive, send)

    def _build(self) -> Engine:
        if self._settings is None:
            self._settings = load()
        return build(self._settings, mode="middleware", application=self._application)

    async def _meet(self, loop: asyncio.AbstractEventLoop) -> ASGIApp:
        """The application for an event loop that is not that of the last call: a test client, or another thread."""
        begun = self._begun.get(loop)
        if begun is None:
            self._begun = {known: begun for known, begun in self._begun.items() if not known.is_closed()}
            begun = self._begun[loop] = await self._begin()
        self._current = (loop, begun.app)
        return begun.app

    async def _begin(self) -> _Begun:
        if self._is_used and not self._is_given:
            self._engine = self._build()
        self._is_used, engine = True, self._engine
        handler = Handler(
            self._application,
            runtime=engine.runtime,
            pipeline=engine.pipeline,
            responder=engine.responder,
            rules=engine.rules,
            streams=engine.streams,
            telemetry=engine.telemetry,
            mounted=True,
            renewals=engine.renewals,
            extras={ENGINE: engine},
        )
        app = with_lifespan(handler, engine.runtime, around=self._application)
        ending = _closed_with_its_loop(engine.runtime)
        if not self._is_given:
            # A loop closes its asynchronous generators before it ends: that closes the engine, if no lifespan did.
            await anext(ending)
        return _Begun(app, ending)

    async def _refuse(self, problem: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await refuse_start(problem, receive, send)
        elif scope["type"] in ("http", "websocket"):
            if not self._has_logged:
                # Without lifespan the operator has not heard of it yet.
                self._has_logged = True
                _log.error("middleware not started: %s", problem)
            await unavailable(scope, send)
        else:
            await self._application(scope, receive, send)


async def _closed_with_its_loop(runtime: Runtime) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        if runtime.has_begun:
            await runtime.aclose()
