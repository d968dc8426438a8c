"""The interface of clients to the backend: connections, and callbacks with what arrives on them.

`forward` uses `Upstream` only: `http1_client.Http1Upstream`, or `http2_client.Http2Upstream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.upstream.connector import SeparateConnection

Failure: TypeAlias = UpstreamUnavailable | UpstreamTimeout


class ResponseCallbacks(Protocol):
    """The receiver of the response to one request. Each method may call the methods of the connection.

    After `on_end`, `on_failure` or its own `abort` it must not use the connection, which may already serve another
    request.
    """

    def on_informational(self, head: ResponseHead) -> None:
        """An interim response (1xx, never 101) has arrived."""

    def on_head(self, head: ResponseHead) -> None:
        """The head of the final response has arrived. If `connection.uploading` is now false, the rest of the request
        body is not wanted."""

    def on_data(self, data: bytes) -> None:
        """A part of the body has arrived."""

    def on_end(self, trailers: HeaderList) -> None:
        """The response is complete, and with it the request, even if its body is not."""

    @property
    def takes_full_response(self) -> bool:
        """True if `on_full_response` may be called."""

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        """All of the final response has arrived. Called instead of `on_head`, `on_data` and `on_end`."""

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        """There will be no response, or no more of it. `untouched`: the connection had served before and ended without
        a byte, so the backend may never have seen the request (RFC 9112 section 9.3.1)."""

    def on_batch_end(self) -> None:
        """All data that has arrived so far was reported, and the response is not complete."""

    def on_writable(self) -> None:
        """The connection takes more of the request body, after `is_full`."""


class BackendConnection(Protocol):
    """A connection as one request uses it: one of HTTP/1.1, or a stream of HTTP/2.

    `uploading` is true while the connection takes more of the request body. While `is_full`, the caller should wait.
    """

    uploading: bool
    is_full: bool

    def start(
        self,
        head: bytes,
        callbacks: ResponseCallbacks,
        *,
        body: bytes = b"",
        to_head_request: bool = False,
        uploading: bool = False,
        chunked: bool = False,
    ) -> None:
        """Send the head of a request, as `serialize_head` writes it, and all of its `body`. With `uploading` the body
        follows instead, by `write` and `finish`; it is `chunked` if it has no length."""

    def write(self, data: bytes) -> None:
        """Send a part of the request body, which is not empty."""

    def finish(self, trailers: Headers = ()) -> None:
        """Mark the request as complete. Only a body without a length has trailers."""

    def pause_reading(self) -> None:
        """Read no more for now."""

    def resume_reading(self) -> None: ...

    def hand_over(self, callbacks: ResponseCallbacks) -> None:
        """Report the rest of the response to other callbacks."""

    def abort(self) -> None:
        """End the request and make no more calls. If it is not complete, it never will be."""


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


class Upstream(Protocol):
    """A client to the backend. `authority` is the `Host` of requests without one."""

    @property
    def authority(self) -> bytes: ...

    def take_idle(self) -> BackendConnection | None:
        """Return a connection that is open at once, or None."""

    async def acquire(self, *, fresh: bool = False) -> BackendConnection:
        """Return a connection, open or new; with `fresh` one that no other request used, if there is room. The caller
        starts its request on it at once. Raises UpstreamUnavailable or UpstreamTimeout."""
        ...

    async def dial(self) -> SeparateConnection:
        """Open a separate connection, TLS included, for a request that turns into another protocol.

        Raises UpstreamUnavailable or UpstreamTimeout. The caller closes it.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections but those of `dial`."""
