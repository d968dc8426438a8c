"""The composition root of the sidecar: settings → ASGI application. Read this file first.

    uvicorn → server → Handler → Pipeline (a verdict) → Forward → backend
                     ↘ DirectRoute, for plain requests ───↗

`gatekeeper_middleware` puts the same handler around an application.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.forward.http import Proxy
from gatekeeper.forward.passing import Passing
from gatekeeper.forward.plan import DirectRoute
from gatekeeper.http.headers import REQUEST_ID, HeaderList
from gatekeeper.http.types import ASGIApp, Receive, Scope, Send
from gatekeeper.server import Exchange
from gatekeeper.settings import Settings
from gatekeeper.telemetry.health import Health, Scrape
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.web.engine import Engine
from gatekeeper.web.handler import Handler
from gatekeeper.web.lifespan import with_lifespan

if TYPE_CHECKING:
    from gatekeeper.upstream.http2_client import Http2Upstream

_PLAIN: Final = b"text/plain; charset=utf-8"


class App(NamedTuple):
    """The application of the public port, and the direct route past it for plain requests."""

    handler: ASGIApp
    fast_path: Callable[[Exchange], bool]


def create_app(settings: Settings, engine: Engine) -> App:
    """Return the sidecar: it checks every request, then serves it itself or forwards it to the backend.

    Raises ValueError for settings without `upstream_url`.
    """
    if settings.upstream_url is None:
        raise ValueError("settings have no upstream_url: the sidecar needs a backend")
    upstream = create_upstream(settings, settings.upstream_url)
    rules = engine.rules
    own_headers = rules.identity.names | {REQUEST_ID}
    proxy = Proxy(
        upstream,
        trusted_proxies=rules.trusted,
        own_headers=own_headers,
        own_spelling=rules.identity.spelling,
        on_error=engine.telemetry.upstream_failed,
    )
    services = DirectServices(
        engine.gate,
        rules,
        engine.streams,
        engine.telemetry,
        engine.responder,
        upstream,
        engine.strays,
        engine.renewals,
        own_headers,
    )
    handler = Handler(
        proxy,
        runtime=engine.runtime,
        pipeline=engine.pipeline,
        responder=engine.responder,
        rules=rules,
        streams=engine.streams,
        telemetry=engine.telemetry,
        mounted=False,
        forward=Passing(services),
    )
    app = with_lifespan(handler, engine.runtime, around=proxy)
    return App(app, DirectRoute(services, engine.runtime))


def create_upstream(settings: Settings, url: str) -> Http1Upstream | Http2Upstream:
    """Return the client for the backend at `url`."""
    make: Callable[..., Http1Upstream | Http2Upstream] = Http1Upstream
    prior = settings.upstream_http2 == "prior"
    if prior or (settings.upstream_http2 == "auto" and url.startswith("https:")):
        # h2 is loaded for those who use it.
        from gatekeeper.upstream.http2_client import Http2Upstream

        make = partial(Http2Upstream, prior=prior)
    return make(
        url,
        connect_timeout_seconds=settings.upstream_connect_timeout,
        timeout_seconds=settings.upstream_timeout,
        max_age_seconds=settings.upstream_max_age,
        ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
    )


def create_ops(health: Health, scrape: Scrape) -> ASGIApp:
    """Return the application of the ops port. Its responses contain no user, token or secret."""

    async def live() -> OpsResponse:
        death = health.death()
        return _health_response([death] if death else [])

    async def ready() -> OpsResponse:
        return _health_response(await health.faults())

    async def metrics() -> OpsResponse:
        content, media_type = scrape()
        return OpsResponse(200, content, [(b"content-type", media_type.encode())])

    pages = {"/livez": live, "/readyz": ready, "/metrics": metrics}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        page = pages.get(scope["path"])
        if page is None:
            response = OpsResponse(404, b"Not Found", [(b"content-type", _PLAIN)])
        elif scope["method"] not in ("GET", "HEAD"):
            headers = [(b"content-type", _PLAIN), (b"allow", b"GET, HEAD")]
            response = OpsResponse(405, b"Method Not Allowed", headers)
        else:
            response = await page()
        headers = [(b"content-length", b"%d" % len(response.body)), *response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    return app


class OpsResponse(NamedTuple):
    """A response of the ops port."""

    status: int
    body: bytes
    headers: HeaderList


def _health_response(faults: Sequence[str]) -> OpsResponse:
    if not faults:
        return OpsResponse(200, b"ok\n", [(b"content-type", _PLAIN)])
    text = "".join(f"{fault}\n" for fault in faults)
    return OpsResponse(503, text.encode(), [(b"content-type", _PLAIN), (b"retry-after", b"1")])
