"""The proxy under a real server, with a scripted backend behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from gatekeeper.errors import GatekeeperError
from gatekeeper.forward.http import Proxy, ResponseTruncated
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.upstream.http1_client import Http1Upstream
from tests.servers import OK, RawClient, RecordingBackend, Script, raw_client, serve_asgi
from tests.waiting import HANG_SECONDS

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Guarded:
    """Stands where the middleware stands: turns the proxy's exceptions into answers, and keeps what happened."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.errors: list[Exception] = []
        self.scopes: list[Any] = []
        self.ended = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.loop = asyncio.get_running_loop()
        try:
            await self._proxy(scope, receive, send)
        except GatekeeperError as error:
            self.errors.append(error)
            length = [(b"content-length", b"0")]
            prefix = "websocket." if scope["type"] == "websocket" else ""
            await send({"type": f"{prefix}http.response.start", "status": error.reason.status, "headers": length})
            await send({"type": f"{prefix}http.response.body", "body": b""})
        except ResponseTruncated as error:
            self.errors.append(error)
            raise
        finally:
            self.ended += 1


class Chain:
    """A backend, the proxy before it, and a client's side of it."""

    def __init__(self, url: str, backend: RecordingBackend, guarded: Guarded) -> None:
        self.url = url
        self.backend = backend
        self.guarded = guarded
        self.upstream_seconds: list[float] = []
        self.error_kinds: list[str] = []
        self.stop: Callable[[], Coroutine[Any, Any, None]]

    async def ended(self, count: int) -> None:
        """Returns when the application has finished so many calls (the lifespan's not among them)."""
        async with asyncio.timeout(HANG_SECONDS):
            while self.guarded.ended < count:  # noqa: ASYNC110 - it ends in another thread
                await asyncio.sleep(0.005)


@asynccontextmanager
async def chain(
    answer: bytes | Script = OK,
    *,
    read_bodies: bool = True,
    listening: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Chain]:
    """`listening` are arguments of the backend, `settings` those of the upstream."""
    async with RecordingBackend(answer, read_bodies=read_bodies, **(listening or {})) as backend:
        seconds: list[float] = []
        kinds: list[str] = []
        proxy = Proxy(
            Http1Upstream(settings.pop("url", backend.url), **settings),
            trusted_proxies=TrustedProxies([]),
            own_headers=frozenset({b"x-user-id"}),
            on_upstream=seconds.append,
            on_error=lambda error: kinds.append(error.kind),
        )
        guarded = Guarded(proxy)
        server = serve_asgi(guarded)
        url = await asyncio.to_thread(server.__enter__)
        stopped = False

        async def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                await asyncio.to_thread(server.__exit__, None, None, None)

        try:
            made = Chain(url, backend, guarded)
            made.upstream_seconds, made.error_kinds, made.stop = seconds, kinds, stop
            yield made
        finally:
            await stop()


@asynccontextmanager
async def raw_chain(answer: bytes | Script = OK, **settings: Any) -> AsyncIterator[tuple[Chain, RawClient]]:
    async with chain(answer, **settings) as made, raw_client(made.url) as client:
        yield made, client
