"""Which header fields cross the proxy, in both directions. Pure.

Hop-by-hop fields stop here (RFC 9110 section 7.6.1), and so does what `Connection` names, with one law above it: what
Gatekeeper says itself, and what the framing or the meaning of a message hangs on, cannot be named away
(GHSA-w9mr-28mw-j8hg, CVE-2024-45410, CVE-2022-31813).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from gatekeeper.http.client_address import UNIX_PEER
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

_NOT_ANSWERED: Final = _HOP_BY_HOP | {REQUEST_ID}

_FORWARDED_PREFIX: Final = b"x-forwarded-"
_FORWARDED_FOR: Final = b"x-forwarded-for"
_REAL_IP: Final = b"x-real-ip"
_FORWARDING: Final = (_FORWARDED_FOR, _REAL_IP, b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
_NAMING_NOTHING: Final[tuple[list[bytes], ...]] = ([], [b"keep-alive"])

_REMEMBERED_NAMES: Final = 1024
_REMEMBERED_NAME_BYTES: Final = 64

# RFC 9110 forbids `Connection` to name what is meant for every recipient; a filter in between has to enforce it.
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

# CGI would read `Content_Length` as `Content-Length`: of these no second spelling passes.
_ONE_SPELLING: Final = _HOP_BY_HOP | _NEVER_NAMED_AWAY


_NEVER_TRAILING: Final = (
    _ONE_SPELLING
    | URL_OVERRIDES
    | {b"cache-control", b"content-range", b"max-forwards", b"range", b"vary", b"www-authenticate"}
)


class Arrival(NamedTuple):
    """How a request came in.

    `peer` is the address of the socket's other end, None on a Unix socket; `client` is the address behind the trusted
    proxies; `scheme` is `http` or `https`; `trusted` tells whether the peer's forwarding headers are believed.
    """

    peer: str | None
    client: str
    scheme: str
    trusted: bool


def request_headers(headers: Headers, arrival: Arrival, own: frozenset[bytes]) -> HeaderList:
    """The headers that the backend gets: in the order they came, what is said about forwarding last.

    `headers` are a scope's (names lower-case), identity headers already set. `own` are the lower-case names that
    Gatekeeper sets; they pass, and `Connection` cannot name them. From an untrusted peer no `X-Forwarded-…`, no
    `X-Real-IP` and no `Forwarded` passes. `Transfer-Encoding` goes, and with it a `Content-Length` beside it (RFC 9112
    section 6.3): whoever sends the body on frames it anew.
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
            if len(passing) < _REMEMBERED_NAMES and len(name) <= _REMEMBERED_NAME_BYTES:
                passing.add(name)
    dropped = _named(connection) - own if connection else set()
    if chunked:
        dropped.add(b"content-length")
    if dropped:
        kept = [pair for pair in kept if pair[0] not in dropped]
    return kept + _forwarding(headers, kept, arrival, own)


@lru_cache(maxsize=8)
def _passing(own: frozenset[bytes], trusted: bool) -> set[bytes]:
    """Names that were found to pass: there are few, and they come with every request."""
    return set()


def response_headers(headers: Headers, status: int) -> HeaderList:
    """Of the headers of the backend's answer, names in lower-case, those that the client gets, as they came.

    The backend's `X-Request-Id` goes, so that Gatekeeper's stays the only one. `Content-Length` goes beside
    `Transfer-Encoding` (RFC 9112 section 6.3), and from 204 and 304: the first must not have one (RFC 9110 section
    8.6), and with the second ASGI servers wait for a body that never comes. Interim answers have none either.
    """
    kept = [pair for pair in headers if pair[0] not in _NOT_ANSWERED]
    connection, unsized = [], status < 200 or status in (204, 304)
    if len(kept) != len(headers):
        connection = get_all(headers, b"connection")
        unsized = unsized or get(headers, b"transfer-encoding") is not None
    dropped = _named(connection) if connection else set()
    if unsized:
        dropped.add(b"content-length")
    return [pair for pair in kept if pair[0] not in dropped] if dropped else kept


def takes_trailers(headers: Headers) -> bool:
    """Whether the client says that it wants trailers (RFC 9110 section 10.1.4)."""
    return any(
        option.strip(b" \t").lower() == b"trailers" for value in get_all(headers, b"te") for option in value.split(b",")
    )


def request_trailers(trailers: Headers, own: frozenset[bytes]) -> HeaderList:
    """The trailers of a request that the backend gets: no name that could be read as one of Gatekeeper's, or that says
    something about framing, routing, authorization or the body (RFC 9110 section 6.5.1), in any spelling."""
    never = _NEVER_TRAILING | URL_OVERRIDES | {fold(name) for name in own}
    return [
        (name, value)
        for name, value in trailers
        if is_token(name)
        and (folded := fold(name)) not in never
        and not folded.startswith((OWN_PREFIX, _FORWARDED_PREFIX))
    ]


def response_trailers(trailers: Headers) -> HeaderList:
    """The trailers of the backend's answer that the client gets, names in lower-case."""
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
    if values in _NAMING_NOTHING:
        return set()  # what nearly every client says
    named = {token.strip(b" \t").lower() for value in values for token in value.split(b",")} - _NEVER_NAMED_AWAY
    return {name for name in named if not name.startswith((_FORWARDED_PREFIX, OWN_PREFIX))}


def _forwarding(headers: Headers, kept: Headers, arrival: Arrival, own: frozenset[bytes]) -> HeaderList:
    """`X-Forwarded-For` with the peer as its last hop, and whatever else a trusted peer did not say already."""
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
    """What Gatekeeper itself saw of a client."""
    # A peer on a Unix socket has no address to tell.
    address = b"" if client == UNIX_PEER else client.encode("latin-1", "replace")
    values = (address, scheme.encode("ascii"), host, _port(host, scheme))
    return tuple((name, value) for name, value in zip(_FORWARDING[1:], values, strict=True) if value)


def _port(host: bytes, scheme: str) -> bytes:
    """The port that the client meant: the one in `Host`, else the scheme's. Not the listener's, which behind a
    published container port is one that no link may ever show."""
    _, colon, port = host.rpartition(b":")
    if colon and port.isdigit():
        return port
    return b"443" if scheme == "https" else b"80"
