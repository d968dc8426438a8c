"""The hop to the backend: what it is asked, what it answers, and how its failures are called.

`Upstream` is the interface that the proxy knows. `native.NativeUpstream` is our own client, `over_httpx.HttpxUpstream`
that of httpx.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol, TypeAlias

from gatekeeper.http.headers import HeaderList
from gatekeeper.upstream.connector import BackendStreams

OnInformational: TypeAlias = Callable[[int, HeaderList], Awaitable[None]]
"""Is told the status and the headers of an interim answer."""


class RequestBody(Protocol):
    """A request body as it comes in. Asking for the next part makes a client that waits for `100 Continue` send it."""

    @property
    def trailers(self) -> HeaderList:
        """What the client sent after the body; known when it has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """No more of it is wanted. Whoever stops before the end calls this."""


class UpstreamRequest(NamedTuple):
    """One request for the backend.

    `target` is path and query, byte for byte. `headers` are final except for the framing, names in lower-case. A
    `body` without `Content-Length` is sent chunked, and its trailers are sent only then; None means no body.
    `on_informational` is awaited for every interim response (1xx) but 101, in order, before the response is returned.
    """

    method: str
    target: bytes
    headers: HeaderList
    body: RequestBody | None
    on_informational: OnInformational | None = None


class UpstreamResponse(Protocol):
    """The answer: its head, and its body as it comes, framing removed and content as it is.

    `may_have_trailers` is known from the head; `trailers` are complete when `body` has ended. Iterating `body` raises
    UpstreamUnavailable or UpstreamTimeout where it breaks off. `aclose` must be called, at whatever point.
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
    """The backend."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Sends a request and returns with the head of its answer, which may come before the body is up.

        Raises UpstreamUnavailable, UpstreamTimeout, or RequestNotForwardable, and what reading the body raises.
        Cancelling it closes the connection.
        """
        ...

    async def dial(self) -> BackendStreams:
        """A connection of its own, TLS included, for what begins as a request and goes on as something else.

        Raises UpstreamUnavailable or UpstreamTimeout. It is the caller's, who closes it.
        """
        ...

    async def aclose(self) -> None:
        """Closes what is open, but for lines."""
