"""The interface of clients to the backend: requests, responses and failures.

`forward` uses `Upstream` only: `http1_client.Http1Upstream`, or `http2_client.Http2Upstream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from gatekeeper.http.headers import HeaderList
from gatekeeper.upstream.connector import SeparateConnection

OnInformational: TypeAlias = Callable[[int, HeaderList], Awaitable[None]]
"""Awaited with the status and the headers of an interim response."""


class RequestBody(Protocol):
    """A request body that is being received. Asking for the next part makes a client send it that waits for `100
    Continue`."""

    @property
    def trailers(self) -> HeaderList:
        """The trailers of the request, known when the body has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Take no more of the body. A reader that stops early must call this."""


class UpstreamRequest(NamedTuple):
    """One request for the backend.

    `target` is path and query, byte for byte. `headers` are final except for the framing, names in lower-case; `names`
    are those as HTTP/1 writes them, None for lower-case. A `body` without `Content-Length` is sent chunked, and its
    trailers are sent only then; None means no body. `on_informational` is awaited for every interim response (1xx) but
    101, in order, before the response is returned.
    """

    method: str
    target: bytes
    headers: HeaderList
    body: RequestBody | None
    on_informational: OnInformational | None = None
    names: Sequence[bytes] | None = None


def as_written(request: UpstreamRequest) -> HeaderList:
    """Return the headers of a request with their names as HTTP/1 writes them."""
    if request.names is None:
        return request.headers
    return [(name, value) for name, (_, value) in zip(request.names, request.headers, strict=True)]


class UpstreamResponse(Protocol):
    """A response: its head, and its body as it arrives, without framing and otherwise unchanged. Names of headers and
    trailers are as they were read, in any case.

    `may_have_trailers` is known from the head; `trailers` are complete when `body` has ended. Iterating over `body`
    raises UpstreamUnavailable or UpstreamTimeout if the backend breaks off. `aclose` must be called, at any point.
    """

    @property
    def status(self) -> int: ...

    @property
    def reason(self) -> bytes: ...

    @property
    def headers(self) -> HeaderList: ...

    @property
    def body(self) -> AsyncIterator[bytes]: ...

    @property
    def may_have_trailers(self) -> bool: ...

    @property
    def trailers(self) -> HeaderList: ...

    async def aclose(self) -> None: ...


class Upstream(Protocol):
    """A client to the backend."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request and return the head of its response, which may arrive before the body is sent.

        Raises UpstreamUnavailable, UpstreamTimeout or RequestNotForwardable, and any exception of reading the body.
        Cancelling it closes the connection.
        """
        ...

    async def dial(self) -> SeparateConnection:
        """Open a separate connection, TLS included, for a request that turns into another protocol.

        Raises UpstreamUnavailable or UpstreamTimeout. The caller closes it.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections but those of `dial`."""
