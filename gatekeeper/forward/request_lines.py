"""The head of a request as the backend gets it."""

from __future__ import annotations

from typing import Final

from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.http.client_address import TrustedProxies, canonical
from gatekeeper.http.forwarding import Arrival, request_headers, takes_trailers
from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.http.request_writer import SerializedHead, serialize_head
from gatekeeper.http.spelling import written_names
from gatekeeper.server import Exchange

# The schemes of WebSocket handshakes, as browsers see the origin and proxies write `X-Forwarded-Proto`.
_HTTP_SCHEMES: Final = {"ws": "http", "wss": "https"}
# `TE` is a hop-by-hop field (RFC 9110 section 10.1.4).
_TAKES_TRAILERS: Final[HeaderList] = [(b"te", b"trailers"), (b"connection", b"te")]


def arrival(client: tuple[str, int] | None, scheme: str, headers: Headers, trusted: TrustedProxies) -> Arrival:
    """Return the connection that a request came from."""
    peer = client[0] if client else None
    return Arrival(
        peer=None if peer is None else canonical(peer),
        client=trusted.client(peer, headers),
        scheme=_HTTP_SCHEMES.get(scheme, scheme),
        trusted=trusted.trusts(peer),
    )


def accepts_trailers(exchange: Exchange) -> bool:
    """Tell whether the client gets the trailers of its response."""
    return exchange.head.version != "1.0" and takes_trailers(exchange.head.headers)


def serialized(
    services: DirectServices, exchange: Exchange, method: str, target: bytes, headers: HeaderList, *, has_body: bool
) -> SerializedHead:
    """Return the head with these `headers`: those of the client that may pass, and Gatekeeper's own. Raises
    RequestNotForwardable."""
    rules, scopes = services.rules, exchange.scopes
    came = arrival(scopes.client, scopes.scheme, headers, rules.trusted)
    passing = request_headers(headers, came, services.own_headers)
    if accepts_trailers(exchange):
        passing += _TAKES_TRAILERS
    names = written_names(passing, exchange.head.section.spelled, rules.identity.spelling)
    authority = services.upstream.authority
    return serialize_head(method, target, passing, authority=authority, has_body=has_body, names=names)


def target_of(exchange: Exchange, query: bytes) -> bytes:
    """Return path and query for the backend, byte for byte as the client sent them, unless a token was removed from the
    query."""
    received = exchange.head.target
    path, _, sent = received.partition(b"?")
    if sent == query:
        return received
    return path + b"?" + query if query else path
