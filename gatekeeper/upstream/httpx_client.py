"""The backend over httpcore, the engine of httpx, without httpx's client: that keeps cookies of one user for the next,
follows redirects, inflates bodies, adds headers, resolves dot segments and reads proxies from the environment.

It costs thirty times as much as `http1_client`. Over HTTP/1.1 it passes no trailers and no interim responses. A backend
that chooses HTTP/2 is served by `http2_client`, without httpcore.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import h11
import httpcore

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import HeaderList, get
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.request_writer import RequestNotForwardable
from gatekeeper.http.response_parser import keep_alive_seconds
from gatekeeper.upstream.connector import BackendStreams, Connector
from gatekeeper.upstream.http2_client import ALPN, Http2Client
from gatekeeper.upstream.httpx_duplex import DuplexBackend, HttpxExchange, current_exchange
from gatekeeper.upstream.interface import RequestBody, UpstreamRequest, UpstreamResponse, as_written
from gatekeeper.upstream.pool import IDLE_SECONDS, MAX_IDLE


class HttpxUpstream:
    """The backend at `url` (`http://host:port`, `https://…`, `http+unix:///path.sock`): over HTTP/2 if it is
    `https://…` and chooses it, else over HTTP/1.1.

    `connect_timeout_seconds` bounds opening a connection, TLS included; `timeout_seconds` every later silence, never
    the whole response. `ca_file` is a PEM bundle that replaces the default certificate authorities. `max_connections`
    must not be less than the number of clients that may wait at once, or slow routes starve the others. Raises
    ValueError for a URL of another form.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_seconds: float = 5.0,
        timeout_seconds: float = 60.0,
        ca_file: str | None = None,
        max_connections: int = 10_000,
        max_age_seconds: float = 300.0,
    ) -> None:
        self._url = url
        self._connector = Connector(url, timeout_seconds=connect_timeout_seconds, ca_file=ca_file, alpn=["http/1.1"])
        where = self._connector.origin
        self._origin = httpcore.URL(scheme="https" if where.is_tls else "http", host=where.host, port=where.port)
        self._timeouts = {
            "connect": connect_timeout_seconds,
            "pool": connect_timeout_seconds,
            "read": timeout_seconds,
            "write": timeout_seconds,
        }
        self._http2: Http2Client | None = None
        if where.is_tls:
            self._http2 = Http2Client(
                Connector(url, timeout_seconds=connect_timeout_seconds, ca_file=ca_file, alpn=ALPN),
                connect_timeout_seconds=connect_timeout_seconds,
                timeout_seconds=timeout_seconds,
                max_connections=max_connections,
                max_age_seconds=max_age_seconds,
            )
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=self._connector.ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=IDLE_SECONDS,
            uds=where.socket_path,
            network_backend=DuplexBackend(max_age_seconds),
        )

    def __repr__(self) -> str:
        return f"<HttpxUpstream {self._url}>"

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        if self._http2 is not None and (response := await self._http2.send(request)) is not None:
            return response
        exchange = HttpxExchange(uploading=request.body is not None)
        try:
            return await self._send_once(request, exchange)
        except UpstreamUnavailable:
            if not _may_be_sent_again(request, exchange):
                raise
        return await self._send_once(request, HttpxExchange(uploading=False))

    async def dial(self) -> BackendStreams:
        return await self._connector.dial(self._timeouts["read"])

    async def aclose(self) -> None:
        if self._http2 is not None:
            await self._http2.aclose()
        await self._pool.aclose()

    async def _send_once(self, request: UpstreamRequest, exchange: HttpxExchange) -> UpstreamResponse:
        outgoing = httpcore.Request(
            request.method,
            self._origin,
            headers=self._framed(request),
            content=None if request.body is None else _Upload(request.body, exchange),
            extensions={"target": request.target, "timeout": self._timeouts},
        )
        token = current_exchange.set(exchange)
        try:
            with _translated_errors(exchange):
                response = await self._pool.handle_async_request(outgoing)
                if request.body is not None:
                    await request.body.aclose()
                _limit_idleness(response, exchange)
                if not exchange.heard:
                    # Surplus bytes of the previous response, which is another client's (CVE-2026-71324).
                    await response.aclose()
                    raise httpcore.RemoteProtocolError("a response before the request")
                if not 200 <= response.status <= 599:
                    # 101 was not requested, and statuses end at 599 (RFC 9110 section 15).
                    await response.aclose()
                    raise httpcore.RemoteProtocolError(f"a response with status {response.status}")
                if any(not (is_token(name) and is_field_value(value)) for name, value in response.headers):
                    # httpcore's parser does not check, and a client's parser may split the response there.
                    await response.aclose()
                    raise httpcore.RemoteProtocolError("a control byte in a header")
        finally:
            current_exchange.reset(token)
        return _HttpxResponse(response, exchange)

    def _framed(self, request: UpstreamRequest) -> HeaderList:
        headers = as_written(request)
        if get(request.headers, b"host") is None:
            # HTTP/1.0 clients may leave it out, HTTP/1.1 may not (RFC 9112 section 3.2).
            headers = [(b"Host", self._connector.origin.authority), *headers]
        if request.body is not None and get(request.headers, b"content-length") is None:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        return headers


class _HttpxResponse:
    def __init__(self, response: httpcore.Response, exchange: HttpxExchange) -> None:
        self.status: int = response.status
        self.reason: bytes = response.extensions.get("reason_phrase", b"")
        self.headers: HeaderList = response.headers
        self.may_have_trailers = False
        self.trailers: HeaderList = []
        self.body: AsyncGenerator[bytes, None] = self._parts(exchange)
        self._response = response

    async def _parts(self, exchange: HttpxExchange) -> AsyncGenerator[bytes, None]:
        with _translated_errors(exchange):
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self.body.aclose()
        await self._response.aclose()


class _Upload:
    """A request body that ends early if the backend responds early."""

    def __init__(self, body: RequestBody, exchange: HttpxExchange) -> None:
        self._body = body
        self._exchange = exchange

    def __aiter__(self) -> _Upload:
        return self

    async def __anext__(self) -> bytes:
        stream = self._exchange.stream
        assert stream is not None, "httpcore asks for the body after it has written the head"  # noqa: S101
        part = await stream.until_response(self._next())
        if part is None:
            raise StopAsyncIteration
        return part

    async def _next(self) -> bytes | None:
        async for part in self._body:
            return part
        return None


def _limit_idleness(response: httpcore.Response, exchange: HttpxExchange) -> None:
    """Keep the connection idle no longer than the backend's `Keep-Alive` allows."""
    for name, value in response.headers:
        if name.lower() == b"keep-alive" and exchange.stream is not None:
            exchange.stream.limit_idleness(keep_alive_seconds(value))


def _may_be_sent_again(request: UpstreamRequest, exchange: HttpxExchange) -> bool:
    """Tell whether the backend closed an idle connection just when the request was sent (RFC 9112 section 9.3.1), and
    doing it twice is harmless (RFC 9110 section 9.2.2)."""
    return exchange.reused and not exchange.heard and request.body is None and request.method in SAFE_METHODS


def _cause_of(error: BaseException) -> BaseException:
    """Return the first error of a chain: what the layers above make of it says only that the attempt failed."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    return error


@contextmanager
def _translated_errors(exchange: HttpxExchange) -> Iterator[None]:
    """Turn httpcore's exceptions into ours."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise UpstreamTimeout(f"the backend was silent for too long ({type(error).__name__})") from error
    except httpcore.ConnectError as error:
        raise UpstreamUnavailable(f"the backend cannot be reached: {_cause_of(error)}", kind="connect") from error
    except httpcore.NetworkError as error:
        raise UpstreamUnavailable("the backend closed the connection", kind="reset") from error
    except httpcore.RemoteProtocolError as error:
        kind = "reset" if exchange.ended else "protocol"
        # Not its text, which may quote the response.
        raise UpstreamUnavailable(f"the backend broke off or broke HTTP ({type(error).__name__})", kind=kind) from error
    except (httpcore.LocalProtocolError, h11.LocalProtocolError) as error:
        raise RequestNotForwardable from error
