"""The hop to the backend: what it is asked, what it answers, and how its failures are called.

`Upstream` is the interface that the proxy knows. `HttpxUpstream` is httpx's engine, httpcore, without the client around
it: a client keeps cookies of one user for the next, follows redirects, inflates bodies, adds headers, resolves dot
segments and reads proxies from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import h11
import httpcore
import httpx

from gatekeeper.errors import GatekeeperError, Reason, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.headers import HeaderList, get
from gatekeeper.proxy.duplex import DuplexBackend, Exchange, current_exchange

# Below the 2 s after which gunicorn closes idle connections, the shortest among common servers (node and uvicorn: 5 s):
# a request must not meet the close on its way (RFC 9112 section 9.3.1).
_KEEPALIVE_SECONDS: Final = 1.5
_MAX_IDLE: Final = 100
_RETRIED_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestBody(Protocol):
    """A request body as it comes in. Asking for the next part makes a client that waits for `100 Continue` send it."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """No more of it is wanted. Whoever stops before the end calls this."""


class UpstreamRequest(NamedTuple):
    """One request for the backend.

    `target` is path and query, byte for byte. `headers` are final but for the framing: a `body` without
    `Content-Length` goes out chunked; None is no body at all.
    """

    method: str
    target: bytes
    headers: HeaderList
    body: RequestBody | None


class UpstreamResponse(Protocol):
    """The answer: its head, and its body as it comes, framing removed and content as it is.

    Iterating `body` raises UpstreamUnavailable or UpstreamTimeout where it breaks off. `aclose` must be called, at
    whatever point.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> HeaderList: ...

    @property
    def body(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Upstream(Protocol):
    """The backend."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Sends a request and returns with the head of its answer, which may come before the body is up.

        Raises UpstreamUnavailable, UpstreamTimeout, or RequestNotForwardable. Cancelling it closes the connection.
        """
        ...

    async def dial(self) -> Line:
        """A connection of its own, TLS included, for what begins as a request and goes on as something else.

        Raises UpstreamUnavailable or UpstreamTimeout. It is the caller's, who closes it.
        """
        ...

    async def aclose(self) -> None:
        """Closes what is open, but for lines."""


class Line(NamedTuple):
    """A connection to the backend, nothing sent yet. `authority` stands in for a missing `Host`; `timeout_seconds` is
    how long the backend may be silent where it owes an answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    authority: bytes
    timeout_seconds: float


class RequestNotForwardable(GatekeeperError):
    """The request has what HTTP does not allow, and the server in front let it through: the client's fault, not the
    backend's. The message is for the client and quotes nothing of the request."""

    reason = Reason.BAD_REQUEST


class HttpxUpstream:
    """The backend at `url` (`http://host:port`, `https://…`, `http+unix:///path.sock`), over HTTP/1.1.

    `connect_timeout_seconds` bounds getting a connection, TLS included; `timeout_seconds` every silence after it, never
    the whole answer. `ca_file` is a PEM bundle that replaces the usual certificate authorities. `max_connections` must
    be no less than the clients that may wait at once, or slow routes starve the others. Raises ValueError for a URL of
    another form.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_seconds: float = 5.0,
        timeout_seconds: float = 60.0,
        ca_file: str | None = None,
        max_connections: int = 10_000,
    ) -> None:
        self._url = url
        self._origin, self._authority, self._socket_path = _parsed_url(url)
        self._ssl_context = _ssl_context(ca_file) if self._origin.scheme == b"https" else None
        self._timeouts = {
            "connect": connect_timeout_seconds,
            "pool": connect_timeout_seconds,
            "read": timeout_seconds,
            "write": timeout_seconds,
        }
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=self._ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            uds=self._socket_path,
            network_backend=DuplexBackend(),
        )

    def __repr__(self) -> str:
        return f"<HttpxUpstream {self._url}>"

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        exchange = Exchange(uploading=request.body is not None)
        try:
            return await self._send_once(request, exchange)
        except UpstreamUnavailable:
            if not _may_be_sent_again(request, exchange):
                raise
        return await self._send_once(request, Exchange(uploading=False))

    async def dial(self) -> Line:
        try:
            async with asyncio.timeout(self._timeouts["connect"]):
                reader, writer = await self._connected()
        except TimeoutError as error:
            raise UpstreamTimeout("the backend was silent for too long (connect)") from error
        except OSError as error:
            raise UpstreamUnavailable(f"the backend cannot be reached: {error}", kind="connect") from error
        return Line(reader, writer, self._authority, self._timeouts["read"])

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket_path is not None:
            return await asyncio.open_unix_connection(self._socket_path)
        port = self._origin.port or (80 if self._ssl_context is None else 443)
        return await asyncio.open_connection(self._origin.host.decode("ascii"), port, ssl=self._ssl_context)

    async def _send_once(self, request: UpstreamRequest, exchange: Exchange) -> UpstreamResponse:
        outgoing = httpcore.Request(
            request.method,
            self._origin,
            headers=self._framed(request),
            content=None if request.body is None else _Upload(request.body, exchange),
            extensions={"target": request.target, "timeout": self._timeouts},
        )
        token = current_exchange.set(exchange)
        try:
            with _named_failures(exchange):
                response = await self._pool.handle_async_request(outgoing)
                if request.body is not None:
                    await request.body.aclose()
                if not exchange.heard:
                    # Surplus bytes of the answer before: someone else's (CVE-2026-71324).
                    await response.aclose()
                    raise httpcore.RemoteProtocolError("an answer that nobody asked for")
        finally:
            current_exchange.reset(token)
        return _HttpxResponse(response, exchange)

    def _framed(self, request: UpstreamRequest) -> HeaderList:
        headers = request.headers
        if get(headers, b"host") is None:
            # HTTP/1.0 clients may leave it out, HTTP/1.1 may not (RFC 9112 section 3.2).
            headers = [(b"host", self._authority), *headers]
        if request.body is not None and get(headers, b"content-length") is None:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        return headers


class _HttpxResponse:
    def __init__(self, response: httpcore.Response, exchange: Exchange) -> None:
        self.status: int = response.status
        self.headers: HeaderList = response.headers
        self.body: AsyncGenerator[bytes, None] = self._parts(exchange)
        self._response = response

    async def _parts(self, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        with _named_failures(exchange):
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self.body.aclose()
        await self._response.aclose()


class _Upload:
    """A request body that ends early when the backend answers early."""

    def __init__(self, body: RequestBody, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange

    def __aiter__(self) -> _Upload:
        return self

    async def __anext__(self) -> bytes:
        stream = self._exchange.stream
        assert stream is not None, "httpcore asks for the body after it has written the head"  # noqa: S101
        part = await stream.unless_answered(self._next())
        if part is None:
            raise StopAsyncIteration
        return part

    async def _next(self) -> bytes | None:
        async for part in self._body:
            return part
        return None


def _may_be_sent_again(request: UpstreamRequest, exchange: Exchange) -> bool:
    """Whether the backend closed a kept connection just when this was sent on it (RFC 9112 section 9.3.1), and doing it
    twice would do no harm if it did not (RFC 9110 section 9.2.2)."""
    return exchange.reused and not exchange.heard and request.body is None and request.method in _RETRIED_METHODS


@contextmanager
def _named_failures(exchange: Exchange) -> Iterator[None]:
    """The one place where httpcore's exceptions become ours."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise UpstreamTimeout(f"the backend was silent for too long ({type(error).__name__})") from error
    except httpcore.ConnectError as error:
        raise UpstreamUnavailable(f"the backend cannot be reached: {error}", kind="connect") from error
    except httpcore.NetworkError as error:
        raise UpstreamUnavailable("the backend closed the connection", kind="reset") from error
    except httpcore.RemoteProtocolError as error:
        kind = "reset" if exchange.ended else "protocol"
        raise UpstreamUnavailable(f"the backend broke off or broke HTTP: {error}", kind=kind) from error
    except (httpcore.LocalProtocolError, h11.LocalProtocolError) as error:
        raise RequestNotForwardable("The request has a header or a body that HTTP does not allow") from error


def _parsed_url(url: str) -> tuple[httpcore.URL, bytes, str | None]:
    """The origin, what stands in for a missing `Host`, and the path of a Unix socket."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix" and parts.path.startswith("/") and not parts.netloc:
        return httpcore.URL(scheme=b"http", host=b"localhost"), b"localhost", parts.path
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.username:
        # Not quoted: people put passwords into URLs.
        raise ValueError("the URL of a backend is http://host:port, https://host:port or http+unix:///path.sock")
    host = parts.hostname.encode("idna" if not parts.hostname.isascii() else "ascii")
    return httpcore.URL(scheme=parts.scheme, host=host, port=parts.port), parts.netloc.encode(), None


def _ssl_context(ca_file: str | None) -> ssl.SSLContext:
    if ca_file is not None:
        return ssl.create_default_context(cafile=ca_file)
    return httpx.create_ssl_context(trust_env=False)
