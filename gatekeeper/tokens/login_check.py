"""The login check: one HTTP request to the backend, or to `LOGIN_CHECK_URL`, that checks a password."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from gatekeeper.errors import TokenRejected, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.tokens import strict_json
from gatekeeper.tokens.claims import parse_user_id
from gatekeeper.tokens.json_pointer import at, parsed_pointer

if TYPE_CHECKING:
    import httpx

MAX_RESPONSE_BYTES = 64 * 1024
# Half of the longest token; the other claims and base64 need the rest.
MAX_CLAIMS_BYTES = 4096
_FIXED_HEADERS = (
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json"),
    # A compressed response could exceed the bound after decompression.
    (b"Accept-Encoding", b"identity"),
    # Surplus bytes on a reused connection would be read as the response to the next password.
    (b"Connection", b"close"),
)
_FIXED_NAMES = frozenset(name.lower() for name, _ in _FIXED_HEADERS) | {
    b"host",
    b"content-length",
    b"transfer-encoding",
}


class CheckedUser(msgspec.Struct, frozen=True):
    """The user whose password was right, and the claims that the response supplies."""

    user: str
    claims: dict[str, Any]


class LoginCheck:
    """Checks passwords by a request to `url` (http or https; over the Unix socket `uds` where that is set).

    `timeout_seconds` bounds the whole call, `connect_timeout_seconds` the connecting. `user_pointer` (RFC 6901) leads
    to the user in the response. `claims` names the members of the response that become claims, or else of the object
    that holds the user. `refusals` are the statuses for a wrong user name or password. `ca_file` is a PEM bundle that
    replaces the system's certificate authorities. No request is repeated, no redirect is followed, and no cookie, proxy
    or credential of the environment is used.

    Raises `ValueError` for another URL or pointer.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        user_pointer: str,
        claims: Sequence[str],
        refusals: Collection[int] = (401, 403),
        transport: httpx.AsyncBaseTransport | None = None,
        ca_file: str | None = None,
        uds: str | None = None,
    ) -> None:
        # Loaded by those who check passwords, before they serve.
        import httpx

        self._url = _checked_url(url)
        self._path = parsed_pointer(user_pointer)
        self._claims = tuple(claims)
        self._refusals = frozenset(refusals)
        self._timeout_seconds = timeout_seconds
        waits = httpx.Timeout(timeout_seconds, connect=connect_timeout_seconds)
        self._extensions = {"timeout": waits.as_dict()}
        # A transport, not a client: a client keeps cookies, follows redirects and reads the environment.
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=ca_file),
            trust_env=False,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=0),
            uds=uds,
        )

    def __repr__(self) -> str:
        return f"LoginCheck({self._url.host}{self._url.path})"

    async def check(
        self, credentials: Mapping[str, Any], *, headers: Sequence[tuple[str, str]] = ()
    ) -> CheckedUser | None:
        """Post `credentials` as JSON, with `headers` added. Return `None` where its status is a refusal.

        Raises `UpstreamUnavailable` where the response names no user, and `UpstreamTimeout`. The exceptions and their
        causes contain neither the password nor the response.
        """
        request = self._request(credentials, headers)
        with _named_failures(self._timeout_seconds):
            async with asyncio.timeout(self._timeout_seconds), self._sent(request) as response:
                if response.status_code in self._refusals:
                    return None
                body = await _body(response)
        return self._read(body)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()

    def _request(self, credentials: Mapping[str, Any], headers: Sequence[tuple[str, str]]) -> httpx.Request:
        import httpx

        # Header values are latin-1, as in ASGI (RFC 9110 section 5.5).
        given = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        passed = [(name, value) for name, value in given if name.lower() not in _FIXED_NAMES]
        return httpx.Request(
            "POST",
            self._url,
            headers=[*_FIXED_HEADERS, *passed],
            content=json.dumps(dict(credentials)).encode("ascii"),
            extensions=self._extensions,
        )

    @asynccontextmanager
    async def _sent(self, request: httpx.Request) -> AsyncGenerator[httpx.Response, None]:
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    def _read(self, body: bytes) -> CheckedUser:
        """Read the user from a response, strictly: no other reader may find another user in it."""
        try:
            document = strict_json.loads(body)
        except ValueError:
            raise _broken("is not strict JSON") from None
        holder, found = at(document, self._path)
        try:
            user = parse_user_id(found)
        except TokenRejected as error:
            raise _broken(f"has no usable user: {error.why}") from None
        claims = {name: value for source in (holder, document) for name, value in self._claims_in(source)}
        if len(json.dumps(claims).encode()) > MAX_CLAIMS_BYTES:
            raise _broken(f"has claims of over {MAX_CLAIMS_BYTES} bytes, too many for a token")
        return CheckedUser(user, claims)

    def _claims_in(self, source: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(source, dict):
            yield from ((name, source[name]) for name in self._claims if name in source)


def asgi_transport(application: Any) -> httpx.AsyncBaseTransport:
    """Make a transport that calls an ASGI application in this process instead of a server."""
    import httpx

    return httpx.ASGITransport(app=application, raise_app_exceptions=False)


async def _body(response: httpx.Response) -> bytes:
    if not 200 <= response.status_code <= 299:
        raise _broken(f"has the status {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _broken("is compressed, although the request forbids it")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise _broken(f"is over {MAX_RESPONSE_BYTES} bytes")
    return bytes(body)


def _broken(what: str) -> UpstreamUnavailable:
    return UpstreamUnavailable(f"the response of the login check {what}", kind="protocol")


@contextmanager
def _named_failures(timeout_seconds: float) -> Iterator[None]:
    """Turn exceptions of httpx into those of Gatekeeper. The former hold the request, and so the password."""
    import httpx

    try:
        yield
    except (TimeoutError, httpx.TimeoutException):
        raise UpstreamTimeout(f"the login check did not respond within {timeout_seconds:g} s") from None
    except httpx.ConnectError as error:
        raise UpstreamUnavailable(f"the login check cannot be reached: {error}", kind="connect") from None
    except httpx.NetworkError:
        raise UpstreamUnavailable("the login check closed the connection", kind="reset") from None
    except httpx.HTTPError as error:
        # httpcore distinguishes a closed connection from a violation of HTTP only by the words of its message.
        kind = "reset" if re.search("disconnected|peer closed", str(error)) else "protocol"
        raise UpstreamUnavailable(
            f"the login check closed the connection or violated HTTP ({type(error).__name__})", kind=kind
        ) from None


def _checked_url(url: str) -> httpx.URL:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        # Not quoted, as the URL may contain a password.
        raise ValueError(
            "the URL of the login check is not accepted; accepted: http:// or https:// with a host and without a user"
        )
    import httpx

    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the URL of the login check is malformed: {error}") from None
