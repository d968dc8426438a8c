"""The composition root of the sidecar: settings → ASGI application. Read this file first.

    uvicorn → server → Handler → Pipeline (a verdict) → Proxy → backend
                     ↘ DirectRoute, for plain requests ──────↗

The same handler stands around an application that mounts Gatekeeper (`gatekeeper_middleware`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gatekeeper.forward.direct import DirectServices
from gatekeeper.forward.http import Proxy
from gatekeeper.forward.plan import DirectRoute
from gatekeeper.http.headers import REQUEST_ID
from gatekeeper.http.types import ASGIApp
from gatekeeper.server import Exchange, no_fast_path
from gatekeeper.settings import Settings
from gatekeeper.telemetry.health import Health, Scrape
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.httpx_client import HttpxUpstream
from gatekeeper.web.engine import Engine
from gatekeeper.web.lifespan import with_lifespan


class App(NamedTuple):
    """The public application, and the fast path of plain requests around it, which only the HTTP/1 client has."""

    handler: ASGIApp
    fast_path: Callable[[Exchange], bool]


def create_app(settings: Settings, engine: Engine) -> App:
    """The sidecar: every request is judged, then served here or passed to the backend."""
    if settings.upstream_url is None:
        raise ValueError("settings without upstream_url cannot be served")
    transport = Http1Upstream if settings.upstream_transport == "native" else HttpxUpstream
    upstream = transport(
        settings.upstream_url,
        connect_timeout_seconds=settings.upstream_connect_timeout,
        timeout_seconds=settings.upstream_timeout,
        ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
    )
    rules = engine.rules
    own_headers = rules.identity.names | {REQUEST_ID}
    proxy = Proxy(
        upstream,
        trusted_proxies=rules.trusted,
        own_headers=own_headers,
        on_error=engine.telemetry.metrics.upstream_failed,
    )
    app = with_lifespan(engine.handler(proxy, mounted=False), engine.runtime, around=proxy)
    if not isinstance(upstream, Http1Upstream):
        return App(app, no_fast_path)
    services = DirectServices(engine.gate, rules, engine.streams, engine.telemetry, engine.responder, upstream)
    return App(app, DirectRoute(services, engine.runtime, own_headers=own_headers))


def create_ops(health: Health, scrape: Scrape) -> Starlette:
    """The application of the ops port: no user, token or secret in any of its answers."""

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        faults = await health.faults()
        return PlainTextResponse(
            "".join(f"{fault}\n" for fault in faults) or "ok\n", status_code=503 if faults else 200
        )

    async def metrics(_: Request) -> Response:
        content, media_type = scrape()
        return Response(content, headers={"content-type": media_type})

    return Starlette(routes=[Route("/livez", live), Route("/readyz", ready), Route("/metrics", metrics)])
