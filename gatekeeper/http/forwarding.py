"""The header fields that pass through the proxy, in both directions. Pure.

Hop-by-hop fields stop here (RFC 9110 section 7.6.1), and so do the fields that `Connection` names, with one exception:
fields that Gatekeeper sets, and fields that decide the framing or the meaning of a message, cannot be removed by naming
them (GHSA-w9mr-28mw-j8hg, CVE-2024-45410, CVE-2022-31813).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from gatekeeper.http.client_address import NO_ADDRESS
from gatekeeper.http.grammar import is_token
from gatekeeper.http.headers import (
    OWN_PREFIX,
    REQUEST_ID,
    URL_OVERRIDES,
    HeaderList,
    Headers,
    fold,
    get,
    get_all,
)

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_NOT_IN_RESPONSES: Final = _HOP_BY_HOP | {REQUEST_ID}

_FORWARDED_PREFIX: Final = b"x-forwarded-"
_FORWARDED_FOR: Final = b"x-forwarded-for"
_REAL_IP: Final = b"x-real-ip"
_FORWARDING: Final = (_FORWARDED_FOR, _REAL_IP, b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
_USUAL_CONNECTION: Final[tuple[list[bytes], ...]] = ([], [b"keep-alive"])

_MAX_CACHED_NAMES: Final = 1024
_MAX_CACHED_NAME_BYTES: Final = 64

# RFC 9110 section 7.6.1 forbids `Connection` to name fields for all recipients; an intermediary has to enforce that.
_NEVER_NAMED_AWAY: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"origin",
        b"set-cookie",
        _REAL_IP,
        REQUEST_ID,
    }
)

# CGI reads `Content_Length` as `Content-Length` (RFC 3875 section 4.1.18): no other spelling of these passes.
_ONE_SPELLING: Final = _HOP_BY_HOP | _NEVER_NAMED_AWAY


_NEVER_TRAILING: Final = (
    _ONE_SPELLING
    | URL_OVERRIDES
    | {b"cache-control", b"content-range", b"max-forwards", b"range", b"vary", b"www-authenticate"}
)


class Arrival(NamedTuple):
    """The connection that a request came from.

    `peer` is the address of the other side of the socket, None on a Unix socket; `client` is the address behind the
    trusted proxies; `scheme` is `http` or `https`; `trusted` is true if the peer's forwarding headers are believed.
    """

    peer: str | None
    client: str
    scheme: str
    trusted: bool


def request_headers(headers: Headers, arrival: Arrival, own: frozenset[bytes]) -> HeaderList:
    """Return the headers for the backend: in the order of the request, then the forwarding headers.

    `headers` are those of a scope (names in lower-case), identity headers already set. `own` are the lower-case names
    that Gatekeeper sets: they pass, and `Connection` cannot name them. From an untrusted peer no `X-Forwarded-…`, no
    `X-Real-IP` and no `Forwarded` passes. `Transfer-Encoding` is removed together with a `Content-Length` beside it
    (RFC 9112 section 6.3), because the sender frames the body anew.
    """
    passing = _passing(own, arrival.trusted)
    kept, connection, chunked = [], [], False
    for pair in headers:
        name = pair[0]
        if name in passing:
            kept.append(pair)
        elif name == b"connection":
            connection.append(pair[1])
        elif name == b"transfer-encoding":
            chunked = True
        elif name in own or _may_pass(name, trusted=arrival.trusted, own=own):
            kept.append(pair)
            if len(passing) < _MAX_CACHED_NAMES and len(name) <= _MAX_CACHED_NAME_BYTES:
                passing.add(name)
    dropped = _named(connection) - own if connection else set()
    if chunked:
        dropped.add(b"content-length")
    if dropped:
        kept = [pair for pair in kept if pair[0] not in dropped]
    return kept + _forwarding(headers, kept, arrival, own)


@lru_cache(maxsize=8)
def _passing(own: frozenset[bytes], trusted: bool) -> set[bytes]:
    """Return the cache of names that pass: there are few, and they come with every request."""
    return set()


def response_headers(headers: Headers, status: int) -> HeaderList:
    """Return those headers of the backend's response that the client gets, unchanged and in order, names in any case.

    The backend's `X-Request-Id` is removed, so that only Gatekeeper's remains. `Content-Length` is removed beside
    `Transfer-Encoding` (RFC 9112 section 6.3), from 204, which must not have one (RFC 9110 section 8.6), from 304, with
    which ASGI servers wait for a body that never comes, and from interim responses.
    """
    kept = [pair for pair in headers if pair[0].lower() not in _NOT_IN_RESPONSES]
    connection, unsized = [], status < 200 or status in (204, 304)
    if len(kept) != len(headers):
        lowered = [(name.lower(), value) for name, value in headers]
        connection = get_all(lowered, b"connection")
        unsized = unsized or get(lowered, b"transfer-encoding") is not None
    dropped = _named(connection) if connection else set()
    if unsized:
        dropped.add(b"content-length")
    return [pair for pair in kept if pair[0].lower() not in dropped] if dropped else kept


def response_line(field: tuple[bytes, bytes]) -> bytes | None:
    """Return the line by which the client gets a header of a response that has a body, b"" for a header that
    `response_headers` removes. None for one that names others to remove: then only that function knows."""
    name = field[0].lower()
    if name == b"connection" and _named([field[1]]):
        return None
    return b"" if name in _NOT_IN_RESPONSES else b"%b: %b\r\n" % field


def takes_trailers(headers: Headers) -> bool:
    """Tell whether the client accepts trailers (RFC 9110 section 10.1.4)."""
    return any(
        option.strip(b" \t").lower() == b"trailers" for value in get_all(headers, b"te") for option in value.split(b",")
    )


def request_trailers(trailers: Headers, own: frozenset[bytes]) -> HeaderList:
    """Return those trailers of a request that the backend gets: none whose name, in any spelling, could be read as one
    of Gatekeeper's, or concerns framing, routing, authorization or the body (RFC 9110 section 6.5.1)."""
    never = _NEVER_TRAILING | URL_OVERRIDES | {fold(name) for name in own}
    return [
        (name, value)
        for name, value in trailers
        if is_token(name)
        and (folded := fold(name)) not in never
        and not folded.startswith((OWN_PREFIX, _FORWARDED_PREFIX))
    ]


def response_trailers(trailers: Headers) -> HeaderList:
    """Return those trailers of the backend's response that the client gets."""
    return [(name, value) for name, value in trailers if fold(name) not in _NEVER_TRAILING]


def _may_pass(name: bytes, *, trusted: bool, own: frozenset[bytes]) -> bool:
    folded = fold(name)
    if folded in own or folded in _HOP_BY_HOP or folded.startswith(OWN_PREFIX):
        return False
    forwarding = folded.startswith(_FORWARDED_PREFIX) or folded in (_REAL_IP, b"forwarded")
    if folded != name and (forwarding or folded in _ONE_SPELLING):
        return False
    return not forwarding or (trusted and folded != _FORWARDED_FOR)


def _named(values: Sequence[bytes]) -> set[bytes]:
    if values in _USUAL_CONNECTION:
        return set()  # nearly every client
    named = {token.strip(b" \t").lower() for value in values for token in value.split(b",")} - _NEVER_NAMED_AWAY
    return {name for name in named if not name.startswith((_FORWARDED_PREFIX, OWN_PREFIX))}


def _forwarding(headers: Headers, kept: Headers, arrival: Arrival, own: frozenset[bytes]) -> HeaderList:
    """Return `X-Forwarded-For` with the peer as its last hop, and those forwarding headers that a trusted peer did not
    send."""
    chain = get_all(headers, _FORWARDED_FOR) if arrival.trusted else []
    if arrival.peer is not None:
        chain.append(arrival.peer.encode("latin-1", "replace"))
    seen = _seen(arrival.client, arrival.scheme, get(headers, b"host") or b"")
    if hops := b", ".join(chain):
        seen = ((_FORWARDED_FOR, hops), *seen)
    if not arrival.trusted and own.isdisjoint(_FORWARDING):
        return list(seen)
    said = {name for name, _ in kept}
    return [pair for pair in seen if pair[0] not in said]


@lru_cache(maxsize=1024)
def _seen(client: str, scheme: str, host: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the forwarding headers for a client as Gatekeeper sees it."""
    # None of a peer on a Unix socket, nor of a client that a trusted peer did not name.
    address = b"" if client in NO_ADDRESS else client.encode("latin-1", "replace")
    values = (address, scheme.encode("ascii"), host, _port(host, scheme))
    return tuple((name, value) for name, value in zip(_FORWARDING[1:], values, strict=True) if value)


def _port(host: bytes, scheme: str) -> bytes:
    """Return the port that the client used: the one in `Host`, else that of the scheme. The listener's own port is not
    it: behind a published container port, no link may ever show it."""
    _, colon, port = host.rpartition(b":")
    if colon and port.isdigit():
        return port
    return b"443" if scheme == "https" else b"80"
