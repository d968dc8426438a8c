"""From an ASGI scope to a request, and to what the application behind is given."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from gatekeeper.auth.requests import RequestFacts
from gatekeeper.errors import StoreUnavailable
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import HeaderList, Headers, get, get_all, request_id
from gatekeeper.http.method_override import overrides_method, query_overrides_method
from gatekeeper.http.origins import Origins
from gatekeeper.http.paths import below
from gatekeeper.http.types import Scope
from gatekeeper.models import CheckResult, Claims, Client

# The scope member in which the application behind finds the engine, for its services.
ENGINE: Final = "gatekeeper.engine"
# The extension that only the sidecar's own server has.
SERVER: Final = "gatekeeper.http"
# The result of a check that was made before the pipeline ran: `CheckResult`, or the `StoreUnavailable` instead.
CHECKED: Final = "gatekeeper.checked"

_SAFE_IN_PATH: Final = "/:@!$&'()*+,;=~-._"
_BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding", b"content-type", b"expect"})
# Traefik, for one, sends `wss` for a WebSocket.
_SCHEMES: Final = frozenset({b"http", b"https", b"ws", b"wss"})
_CREDENTIALS: Final = frozenset({b"authorization", b"cookie"})


class IncomingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it was received. `headers` is a copy: uvicorn's httptools protocol appends trailer fields to the
    scope's own list while the application runs. `path` is judged: what is left of the one that was received behind
    `root`, where the application is mounted."""

    method: str
    path: bytes
    full_path: str
    root: str
    query: bytes
    headers: Headers
    websocket: bool
    scheme: str
    request_id: str
    client: Client
    peer: str | None
    checked: CheckResult | StoreUnavailable | None = None

    def facts(self, origins: Origins, *, own: bool, event_stream: bool = False) -> RequestFacts:
        """The facts for the gate. `own`: one of Gatekeeper's own operations, which a cookie alone must not trigger."""
        if self.websocket:
            cookie_allowed = origins.may_connect(self.headers, scheme=self.scheme)
        else:
            cookie_allowed = not own or origins.may_change(self.headers, method=self.method, scheme=self.scheme)
        return RequestFacts(
            headers=self.headers,
            query=self.query,
            websocket=self.websocket,
            event_stream=event_stream,
            client=self.client,
            cookie_allowed=cookie_allowed,
            checked=self.checked,
        )

    @property
    def is_event_stream(self) -> bool:
        """A `GET` for server-sent events."""
        if self.method != "GET" or self.websocket:
            return False
        accepted = (item for value in get_all(self.headers, b"accept") for item in value.split(b","))
        return any(item.partition(b";")[0].strip(b" \t").lower() == b"text/event-stream" for item in accepted)

    @property
    def is_preflight(self) -> bool:
        """A CORS preflight (Fetch standard): it never carries credentials, so it cannot be judged."""
        if self.method != "OPTIONS":
            return False
        names = {name for name, _ in self.headers}
        # No browser overrides the method of a preflight, and a backend would take it for something else.
        return b"origin" in names and b"access-control-request-method" in names and not self.overrides_method

    @property
    def preflight_method(self) -> str:
        """The method of the request that a preflight announces."""
        return (get(self.headers, b"access-control-request-method") or b"").decode("latin-1")

    @property
    def language_header(self) -> str:
        return ",".join(value.decode("latin-1") for value in get_all(self.headers, b"accept-language"))

    @property
    def overrides_method(self) -> bool:
        """True if a backend may take the request for one of another method."""
        return overrides_method(self.headers) or query_overrides_method(self.query)


def read(scope: Scope, trusted: TrustedProxies) -> IncomingRequest:
    """The request of an `http` or `websocket` scope."""
    headers = tuple((name.lower(), value) for name, value in scope["headers"])
    websocket = scope["type"] == "websocket"
    peer = scope["client"][0] if scope.get("client") else None
    request = request_id(headers)
    raw_path = scope.get("raw_path")
    if raw_path is None:
        # ASGI makes `raw_path` optional.
        raw_path = quote(scope["path"], safe=_SAFE_IN_PATH).encode("ascii")
    root, path = scope.get("root_path", ""), raw_path.partition(b"?")[0]
    return IncomingRequest(
        method="GET" if websocket else scope["method"],
        path=below(root, path) if root else path,
        full_path=path.decode("latin-1"),
        root=root,
        query=scope.get("query_string", b""),
        headers=headers,
        websocket=websocket,
        scheme=_scheme(scope, headers, trusted=trusted.trusts(peer)),
        request_id=request,
        peer=peer,
        checked=scope.get(CHECKED),
        client=Client(
            ip_address=trusted.client(peer, headers),
            user_agent=_text(get(headers, b"user-agent") or b""),
            headers=headers,
            request_id=request,
        ),
    )


def _text(octets: bytes) -> str:
    """The text of a header field: UTF-8 where it is that, else the older ISO-8859-1 (RFC 9110 section 5.5)."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def _scheme(scope: Scope, headers: Headers, *, trusted: bool) -> str:
    """The scheme that the client used: behind a trusted proxy that terminates TLS, the one it names."""
    forwarded = get(headers, b"x-forwarded-proto") if trusted else None
    return forwarded.decode() if forwarded in _SCHEMES else scope.get("scheme", "http")


def without_credentials(headers: Headers) -> HeaderList:
    """The headers of a preflight for the backend: no identity, no credentials, no body."""
    return [(name, value) for name, value in headers if name not in _CREDENTIALS and name not in _BODY_HEADERS]


class CurrentSession(msgspec.Struct, frozen=True, kw_only=True):
    """The session of an admitted request, as the application behind sees it. `degraded`: the store could not be asked,
    and `session_id` is 0 unless it was known before."""

    user: str
    session_id: int
    roles: tuple[str, ...]
    is_admin: bool
    claims: Claims
    degraded: bool = False
