"""Find the token of a request: in `Authorization`, a cookie, and for WebSockets the query or a subprotocol.

The first source that holds a token decides, and contradicting credentials inside one source are refused (rule 3.8; RFC
6750 section 2: one method per request).
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.http.grammar import TOKEN_BYTES
from gatekeeper.http.headers import Headers

# RFC 9110 section 11.2 (token68).
_TOKEN68 = (string.ascii_letters + string.digits + "-._~+/=").encode()

# Each costs a signature.
_MAX_CANDIDATES = 4
_ONE_TCHAR = frozenset(bytes([char]) for char in TOKEN_BYTES)

_AUTHORIZATION = b"authorization"
_COOKIE = b"cookie"
_PROTOCOLS = b"sec-websocket-protocol"
_BEARER = b"bearer"


class PresentedToken(msgspec.Struct, frozen=True):
    """A token that a request carries, not verified yet. `source` is the name of its source as configured.

    `others` are different tokens of later sources, which must not verify for another user.
    """

    token: str
    source: str
    others: tuple[str, ...]


class TokenSources:
    """The token sources in order: `header`, `cookie:NAME`, and for WebSockets only `query:NAME`, `subprotocol`.

    Raises `ValueError` for another name, a repeated name, or an empty list.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("no token source is named; accepted: header, cookie:NAME, query:NAME, subprotocol")
        if len(set(names)) != len(names):
            raise ValueError("a token source is named twice")
        self.names = tuple(names)
        parsed = tuple(_parse_name(name) for name in names)
        self.cookie_names = tuple(key.decode("ascii") for _, kind, key in parsed if kind == "cookie")
        self._for_websockets = parsed
        self._for_requests = tuple(source for source in parsed if source[1] in {"header", "cookie"})
        self._cookies = frozenset(key for _, kind, key in parsed if kind == "cookie")
        self._parameters = frozenset(key for _, kind, key in parsed if kind == "query")

    def __repr__(self) -> str:
        return f"TokenSources({','.join(self.names)})"

    def find(self, headers: Headers, *, query: bytes = b"", websocket: bool = False) -> PresentedToken | None:
        """Find the token of a request, `None` where it has none. `query` is the raw query string.

        Raises `TokenRejected` for ambiguous credentials: two `Authorization` headers, two
        cookies of one configured name with different values, a malformed `Bearer` credential (RFC 9110 section 11.1).
        """
        authorization: bytes | None = None
        cookies: list[bytes] = []
        protocols: list[bytes] = []
        for name, value in headers:
            size = len(name)
            if size == 13 and name.lower() == _AUTHORIZATION:
                if authorization is not None:
                    raise TokenRejected("two Authorization headers")
                authorization = value
            elif size == 6 and name.lower() == _COOKIE:
                cookies.append(value)
            elif websocket and size == 22 and name.lower() == _PROTOCOLS:
                protocols.append(value)
        jar = self._jar(cookies) if cookies else {}
        token: str | None = None
        source = ""
        others: list[str] = []
        for configured, kind, key in self._for_websockets if websocket else self._for_requests:
            try:
                read = _read(kind, key, authorization, jar, protocols, query)
            except TokenRejected:
                if token is None:
                    raise
                # Rule 3.8: a later source matters only if its token verifies, and this one never will.
                continue
            if token is None:
                token, source = read, configured
            elif read is not None and read != token:
                others.append(read)
        return None if token is None else PresentedToken(token, source, tuple(others))

    def candidates(self, headers: Headers) -> list[str]:
        """Return every text of an HTTP request that stands where a source looks, the first few of them: contradicting
        ones too."""
        texts: list[bytes] = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == _AUTHORIZATION and "header" in self.names:
                texts.append((_credential(value) or b"").strip(b" \t"))
            elif lowered == _COOKIE:
                texts.extend(value for _, value in self._pairs(value))
        return [text.decode("ascii") for text in dict.fromkeys(texts) if text and text.isascii()][:_MAX_CANDIDATES]

    def _pairs(self, header: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the configured cookies of one `Cookie` header."""
        for piece in header.split(b";"):
            name, separator, value = piece.partition(b"=")
            name = name.strip(b" \t")
            # A cookie without a name is ignored (`=__Host-x=evil`, CVE-2023-23934).
            if not separator or name not in self._cookies:
                continue
            value = value.strip(b" \t")
            if len(value) > 1 and value[:1] == value[-1:] == b'"':
                # RFC 6265 section 4.1.1 lets a server quote a value, and backends unquote it.
                value = value[1:-1]
            yield name, value

    def _jar(self, cookies: list[bytes]) -> dict[bytes, bytes]:
        jar: dict[bytes, bytes] = {}
        for header in cookies:
            for name, value in self._pairs(header):
                if jar.setdefault(name, value) != value:
                    raise TokenRejected("two cookies of one name with different values")
        return jar

    def strip_tokens(self, headers: Headers, *, keep_source: str | None = None) -> list[tuple[bytes, bytes]]:
        """Remove the tokens from headers for the backend, except that of the source `keep_source`.

        Every `Authorization` of scheme Bearer is removed, a source or not: a backend would trust a token that was
        never verified. Configured cookies are cut out of `Cookie`, and bearer entries out of
        `Sec-WebSocket-Protocol` if that is a source. All other bytes of these headers stay as they are.
        """
        names = frozenset(name for name in self._cookies if f"cookie:{name.decode('ascii')}" != keep_source)
        kept: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == _AUTHORIZATION and keep_source != "header" and _credential(value) is not None:
                continue
            if lowered == _COOKIE:
                rest = self._without_cookies(value, names)
                if rest or not value:
                    kept.append((name, rest))
                continue
            kept.append((name, value))
        return kept if keep_source == "subprotocol" else self.strip_bearer_subprotocol(kept)

    def strip_cookies(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Remove the configured cookies from headers; all other bytes stay as they are."""
        kept: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            rest = self._without_cookies(value, self._cookies) if name.lower() == _COOKIE else value
            if rest or not value:
                kept.append((name, rest))
        return kept

    def _without_cookies(self, header: bytes, names: frozenset[bytes]) -> bytes:
        pieces = header.split(b";")
        kept = [piece for piece in pieces if self._cookie_of(piece) not in names]
        return header if len(kept) == len(pieces) else b";".join(kept).strip(b" \t")

    @staticmethod
    def _cookie_of(piece: bytes) -> bytes:
        # Leading `=` are skipped, as by the parsers of CVE-2023-23934: such a backend would find a token there.
        return piece.lstrip(b" \t=").partition(b"=")[0].strip(b" \t")

    def strip_bearer_subprotocol(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Remove `bearer, <jwt>` from the WebSocket subprotocols, if that is a source."""
        if "subprotocol" not in self.names:
            return headers
        # Across header lines: `bearer` may be the last item of one, and the token the first of the next (RFC 9110
        # section 5.3).
        members = list(_list_members(value for name, value in headers if name.lower() == _PROTOCOLS))
        if _BEARER not in (member.lower() for member in members):
            return headers
        kept: list[bytes] = []
        rest = iter(members)
        for member in rest:
            if member.lower() == _BEARER:
                next(rest, None)
            else:
                kept.append(member)
        others = [(name, value) for name, value in headers if name.lower() != _PROTOCOLS]
        return [*others, (_PROTOCOLS, b", ".join(kept))] if kept else others

    def strip_query(self, query: bytes, *, keep_source: str | None = None) -> bytes:
        """Remove the configured parameters, except that of `keep_source`, from a raw query string."""
        names = frozenset(name for name in self._parameters if f"query:{name.decode('ascii')}" != keep_source)
        if not names:
            return query
        return b"&".join(piece for piece in query.split(b"&") if _parameter_name(piece) not in names)


def _parse_name(name: str) -> tuple[str, str, bytes]:
    """Parse a configured source into name, kind and key."""
    if name in {"header", "subprotocol"}:
        return name, name, b""
    kind, _, key = name.partition(":")
    if kind not in {"cookie", "query"}:
        raise ValueError(f"unknown token source {name!r}; accepted: header, cookie:NAME, query:NAME, subprotocol")
    if not key or not key.isascii() or key.encode().translate(None, TOKEN_BYTES):
        raise ValueError(f"token source {name!r} needs a name of letters, digits and !#$%&'*+-.^_`|~ after the colon")
    return name, kind, key.encode("ascii")


def _read(
    kind: str, key: bytes, authorization: bytes | None, jar: Mapping[bytes, bytes], protocols: list[bytes], query: bytes
) -> str | None:
    if kind == "header":
        return None if authorization is None else _bearer(authorization)
    if kind == "cookie":
        value = jar.get(key)
        return _ascii(value) if value else None
    return _parameter(query, key) if kind == "query" else _subprotocol(protocols)


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise TokenRejected("the credential is not ASCII") from None


def _credential(authorization: bytes) -> bytes | None:
    """Return the part after the scheme `Bearer`, `None` for another scheme."""
    value = authorization.strip(b" \t")
    if value[:6].lower() != _BEARER or value[6:7] in _ONE_TCHAR:
        return None
    return value[6:]


def _bearer(authorization: bytes) -> str | None:
    rest = _credential(authorization)
    if rest is None:
        return None
    token = rest[1:]
    if rest[:1] != b" " or not token or token.translate(None, _TOKEN68):
        raise TokenRejected("the Bearer credential is malformed")
    return token.decode("ascii")


def _list_members(values: Iterable[bytes]) -> Iterator[bytes]:
    for value in values:
        for member in value.split(b","):
            stripped = member.strip(b" \t")
            if stripped:
                yield stripped


def _subprotocol(values: list[bytes]) -> str | None:
    members = list(_list_members(values))
    at = [index for index, member in enumerate(members) if member.lower() == _BEARER]
    if not at:
        return None
    if len(at) > 1 or at[0] + 1 == len(members):
        raise TokenRejected("the bearer subprotocol is malformed")
    return _ascii(members[at[0] + 1])


def _parameter_name(piece: bytes) -> bytes:
    return unquote_to_bytes(piece.partition(b"=")[0].replace(b"+", b" "))


def _parameter(query: bytes, name: bytes) -> str | None:
    values = {
        unquote_to_bytes(piece.partition(b"=")[2]) for piece in query.split(b"&") if _parameter_name(piece) == name
    }
    if len(values) > 1:
        raise TokenRejected("two query parameters of one name with different values")
    value = values.pop() if values else b""
    return _ascii(value) if value else None
