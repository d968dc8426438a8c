"""Find the token of a request: in `Authorization`, another header, a cookie, the query or a subprotocol.

The first source that holds a token decides, and contradicting credentials inside one source are refused (rule 3.8; RFC
6750 section 2: one method per request). Several cookies of one name are not refused: `twins` are for the gate to judge,
because another site of the same domain can set a cookie, and a browser keeps one of a former path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.http.grammar import TOKEN_BYTES
from gatekeeper.http.headers import Headers, fold
from gatekeeper.tokens.jwt_texts import jwts

# RFC 9110 section 11.2 (token68).
_TOKEN68: Final = re.compile(rb"[A-Za-z0-9._~+/=-]+")
_SCHEME: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]*")
# `Bearer` as some backends write it in front of the token in a cookie.
_BEARER_IN_COOKIE: Final = re.compile(rb"bearer(?: |%20)+", re.IGNORECASE)

_AUTHORIZATION: Final = b"authorization"
_COOKIE: Final = b"cookie"
_PROTOCOLS: Final = b"sec-websocket-protocol"
_BEARER: Final = b"bearer"
ACCEPTED: Final = "header, scheme:NAME, header:NAME, cookie:NAME, query:NAME, subprotocol"


class MalformedCredential(TokenRejected):
    """A credential that is no token by its form. It contradicts no other one."""


class PresentedToken(msgspec.Struct, frozen=True):
    """A token that a request carries, not verified yet. `source` is the name of its source as configured.

    `others` are different texts of later sources, malformed ones and the tokens in these too: they must not verify for
    another user, and do not go on. `twins` are the other values
    of the cookie that the token is in.
    """

    token: str
    source: str
    others: tuple[str, ...]
    twins: tuple[str, ...] = ()


class _Source(NamedTuple):
    """A configured source. `kind`: `scheme`, `header`, `cookie`, `query` or `subprotocol`; `key` is the scheme or the
    name of the header in lower case, the cookie or the query member."""

    name: str
    kind: str
    key: bytes


class _Fields(NamedTuple):
    """The fields of a request that may hold a token."""

    authorization: bytes | None
    named: Mapping[bytes, list[bytes]]
    cookies: Mapping[bytes, list[bytes]]
    protocols: list[bytes]


class TokenSources:
    """The token sources in order: `header`, `scheme:NAME`, `header:NAME`, `cookie:NAME`, `query:NAME` (for WebSockets
    and event streams), `subprotocol` (for WebSockets).

    Raises `ValueError` for another name, a repeated name, or an empty list.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError(f"no token source is named; accepted: {ACCEPTED}")
        if len(set(names)) != len(names):
            raise ValueError("a token source is named twice")
        self.names = tuple(names)
        parsed = tuple(_parse_name(name) for name in names)
        self.cookie_names = tuple(each.key.decode("ascii") for each in parsed if each.kind == "cookie")
        self._for_websockets = parsed
        self._for_event_streams = tuple(each for each in parsed if each.kind != "subprotocol")
        self._for_requests = tuple(each for each in self._for_event_streams if each.kind != "query")
        self._schemes = {each.key: each.name for each in parsed if each.kind == "scheme"}
        self._headers = {each.key: each.name for each in parsed if each.kind == "header"}
        self._cookies = frozenset(each.key for each in parsed if each.kind == "cookie")
        self.parameters = frozenset(each.key for each in parsed if each.kind == "query")
        self.header_names = frozenset(self._headers)
        self.schemes = tuple(_scheme_name(each) for each in parsed if each.kind == "scheme")

    def __repr__(self) -> str:
        return f"TokenSources({','.join(self.names)})"

    def find(
        self, headers: Headers, *, query: bytes = b"", websocket: bool = False, event_stream: bool = False
    ) -> PresentedToken | None:
        """Find the token of a request, `None` where it has none. `query` is the raw query string; `event_stream`: a
        page reads the response as server-sent events, and can send no header.

        Raises `TokenRejected` for ambiguous credentials: two `Authorization` headers, two different values of a
        configured header or query member, a malformed credential of a configured scheme (RFC 9110 section 11.1).
        """
        fields = self._fields(headers, websocket=websocket)
        sources = self._for_websockets if websocket else self._for_requests
        if event_stream and not websocket:
            sources = self._for_event_streams
        token: str | None = None
        source = ""
        twins: list[str] = []
        others: list[str] = []
        for configured in sources:
            try:
                texts = _read(configured, fields, query)
            except TokenRejected:
                if token is None:
                    raise
                # Rule 3.8: of what cannot be read as one token nothing goes on, and the tokens in it are judged.
                texts = _pieces(configured, fields, query)
            if not texts:
                continue
            if token is None:
                token, *twins = texts
                source = configured.name
            else:
                others += [text for text in texts if text != token]
        return None if token is None else PresentedToken(token, source, tuple(others), tuple(twins))

    def _fields(self, headers: Headers, *, websocket: bool) -> _Fields:
        authorization: bytes | None = None
        cookies: list[bytes] = []
        protocols: list[bytes] = []
        named: dict[bytes, list[bytes]] = {}
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
            elif self._headers and (lowered := name.lower()) in self._headers:
                named.setdefault(lowered, []).append(value)
        return _Fields(authorization, named, self._jar(cookies) if cookies else {}, protocols)

    def unread_scheme(self, headers: Headers) -> bool:
        """Return true where `Authorization` has a scheme that no source names."""
        values = [value for name, value in headers if name.lower() == _AUTHORIZATION]
        return any(value.strip(b" \t") and self._scheme_source(value) is None for value in values)

    def reads_authorization(self, value: bytes) -> bool:
        """Return true where a source reads this `Authorization`."""
        return self._scheme_source(value) is not None

    def reads_cookie(self, piece: bytes) -> bool:
        """Return true where a pair of a `Cookie` header is a configured cookie."""
        name, separator, _ = piece.partition(b"=")
        return bool(separator) and name.strip(b" \t") in self._cookies

    def has_parameter(self, query: bytes) -> bool:
        """Return true where a raw query string has a member that is a source."""
        return bool(self.parameters) and any(_parameter_name(piece) in self.parameters for piece in query.split(b"&"))

    def _scheme_source(self, authorization: bytes) -> str | None:
        """Return the name of the source that reads this `Authorization`, None where there is none."""
        scheme, _ = _split_credential(authorization)
        source = self._schemes.get(scheme.lower()) if scheme else None
        if source is None and b"" in self._schemes and _is_token68(authorization.strip(b" \t")):
            return self._schemes[b""]
        return source

    def candidates(self, headers: Headers) -> list[str]:
        """Return every text of an HTTP request that stands where a source looks, contradicting ones too."""
        texts: list[bytes] = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == _AUTHORIZATION and self._scheme_source(value) is not None:
                _, rest = _split_credential(value)
                texts.append(rest.strip(b" \t") if rest[:1] in (b" ", b"\t") else value.strip(b" \t"))
            elif lowered in self._headers:
                texts.append(_bare(value))
            elif lowered == _COOKIE:
                texts.extend(value for _, value in self._pairs(value))
        return [text.decode("ascii") for text in dict.fromkeys(texts) if text and text.isascii()]

    def _pairs(self, header: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the configured cookies of one `Cookie` header."""
        for piece in header.split(b";"):
            name, separator, value = piece.partition(b"=")
            name = name.strip(b" \t")
            # A cookie without a name is ignored (`=__Host-x=evil`, CVE-2023-23934).
            if separator and name in self._cookies:
                yield name, cookie_text(value)

    def _jar(self, cookies: list[bytes]) -> dict[bytes, list[bytes]]:
        jar: dict[bytes, list[bytes]] = {}
        for header in cookies:
            for name, value in self._pairs(header):
                values = jar.setdefault(name, [])
                if value not in values:
                    values.append(value)
        return jar

    def strip_tokens(self, headers: Headers, *, keep_source: str | None = None) -> list[tuple[bytes, bytes]]:
        """Remove the tokens from headers for the backend, except that of the source `keep_source`.

        Every `Authorization` of scheme Bearer is removed, a source or not: a backend would trust a token that was
        never verified. Configured cookies are cut out of `Cookie`, and bearer entries out of
        `Sec-WebSocket-Protocol` if that is a source. All other bytes of these headers stay as they are.
        """
        names = frozenset(name for name in self._cookies if f"cookie:{name.decode('ascii')}" != keep_source)
        folded = frozenset(fold(name) for name in self._headers)
        kept: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == _AUTHORIZATION and self._is_stripped(value, keep_source):
                continue
            if folded and fold(lowered) in folded and not (keep_source and self._headers.get(lowered) == keep_source):
                continue
            if lowered == _COOKIE:
                rest = self._without_cookies(value, names)
                if rest or not value:
                    kept.append((name, rest))
                continue
            kept.append((name, value))
        return kept if keep_source == "subprotocol" else self.strip_bearer_subprotocol(kept)

    def _is_stripped(self, authorization: bytes, keep_source: str | None) -> bool:
        source = self._scheme_source(authorization)
        if source is None:
            return _split_credential(authorization)[0].lower() == _BEARER
        return source != keep_source

    def strip_cookies(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Remove the configured cookies from headers; all other bytes stay as they are."""
        return self._with_cookies(headers, lambda piece: self._cookie_of(piece) not in self._cookies)

    def strip_twins(self, headers: Headers, texts: frozenset[str]) -> list[tuple[bytes, bytes]]:
        """Remove the configured cookies with these texts from headers, as whole pairs."""
        return self._with_cookies(
            headers,
            lambda piece: (
                self._cookie_of(piece) not in self._cookies
                or cookie_text(piece.lstrip(b" \t=").partition(b"=")[2]).decode("latin-1") not in texts
            ),
        )

    @staticmethod
    def _with_cookies(headers: Headers, is_kept: Callable[[bytes], bool]) -> list[tuple[bytes, bytes]]:
        kept: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            rest = keep_pairs(value, is_kept) if name.lower() == _COOKIE else value
            if rest or not value:
                kept.append((name, rest))
        return kept

    def _without_cookies(self, header: bytes, names: frozenset[bytes]) -> bytes:
        return keep_pairs(header, lambda piece: self._cookie_of(piece) not in names)

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
        names = frozenset(name for name in self.parameters if f"query:{name.decode('ascii')}" != keep_source)
        if not names:
            return query
        return b"&".join(piece for piece in query.split(b"&") if _parameter_name(piece) not in names)


def _scheme_name(source: _Source) -> str:
    return "Bearer" if source.name == "header" else source.name.removeprefix("scheme:")


def keep_pairs(header: bytes, is_kept: Callable[[bytes], bool]) -> bytes:
    """Return a `Cookie` header with those of its pairs that `is_kept` accepts. All other bytes stay as they are."""
    pieces = header.split(b";")
    kept = [piece for piece in pieces if is_kept(piece)]
    return header if len(kept) == len(pieces) else b";".join(kept).strip(b" \t")


def cookie_text(value: bytes) -> bytes:
    """Return the token in the value of a cookie: without quotes, and without a leading `Bearer`."""
    value = value.strip(b" \t")
    if len(value) > 1 and value[:1] == value[-1:] == b'"':
        # RFC 6265 section 4.1.1 lets a server quote a value, and backends unquote it.
        value = value[1:-1]
    return value[found.end() :] if (found := _BEARER_IN_COOKIE.match(value)) else value


def _parse_name(name: str) -> _Source:
    """Parse a configured source."""
    if name == "header":
        return _Source(name, "scheme", _BEARER)
    if name == "subprotocol":
        return _Source(name, "subprotocol", b"")
    kind, colon, key = name.partition(":")
    if kind not in {"scheme", "header", "cookie", "query"} or not colon:
        raise ValueError(f"unknown token source {name!r}; accepted: {ACCEPTED}")
    if (not key and kind != "scheme") or not key.isascii() or key.encode().translate(None, TOKEN_BYTES):
        raise ValueError(f"token source {name!r} needs a name of letters, digits and !#$%&'*+-.^_`|~ after the colon")
    if kind == "scheme" and key.lower() == "bearer":
        raise ValueError(f"token source {name!r} is the source header; accepted: {ACCEPTED}")
    return _Source(name, kind, (key.lower() if kind in {"scheme", "header"} else key).encode("ascii"))


def _read(source: _Source, fields: _Fields, query: bytes) -> list[str]:
    """Return the texts in one source: none or one, of a cookie perhaps several different ones."""
    kind, key = source.kind, source.key
    if kind == "scheme":
        found = None if fields.authorization is None else _credential(fields.authorization, key)
    elif kind == "header":
        found = _field(fields.named.get(key, ()))
    elif kind == "cookie":
        values = fields.cookies.get(key, [])
        if len(values) > 1:
            return [value.decode("latin-1") for value in values]
        found = _ascii(values[0]) if values and values[0] else None
    else:
        found = _parameter(query, key) if kind == "query" else _subprotocol(fields.protocols)
    return [] if found is None else [found]


def _pieces(source: _Source, fields: _Fields, query: bytes) -> list[str]:
    """Return what stands in a source that cannot be read as one token, and the texts in it that look like tokens."""
    kind, key = source.kind, source.key
    if kind == "scheme":
        values = [fields.authorization or b""]
    elif kind == "header":
        values = fields.named.get(key, [])
    elif kind == "cookie":
        values = fields.cookies.get(key, [])
    else:
        values = _parameters(query, key) if kind == "query" else fields.protocols
    return [text for value in values for text in (value.decode("latin-1"), *jwts(value))]


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedCredential("the credential is not ASCII") from None


def _is_token68(value: bytes) -> bool:
    return _TOKEN68.fullmatch(value) is not None


def _split_credential(authorization: bytes) -> tuple[bytes, bytes]:
    """Split a credential into its scheme and all that follows."""
    value = authorization.strip(b" \t")
    end = found.end() if (found := _SCHEME.match(value)) else 0
    return value[:end], value[end:]


def _credential(authorization: bytes, wanted: bytes) -> str | None:
    """Return the token of a credential with the scheme `wanted`, `None` for one with another scheme."""
    if not wanted:
        bare = authorization.strip(b" \t")
        return bare.decode("ascii") if _is_token68(bare) else None
    scheme, rest = _split_credential(authorization)
    if scheme.lower() != wanted:
        return None
    token = rest[1:]
    if rest[:1] != b" " or not _is_token68(token):
        raise MalformedCredential(f"the {wanted.decode().capitalize()} credential is malformed")
    return token.decode("ascii")


def _bare(value: bytes) -> bytes:
    """Return the token in a header of its own: some clients write `Bearer` in front."""
    value = value.strip(b" \t")
    return value[7:].lstrip(b" ") if value[:7].lower() == b"bearer " else value


def _field(values: Sequence[bytes]) -> str | None:
    texts = {text for value in values if (text := _bare(value))}
    if len(texts) > 1:
        raise TokenRejected("two headers of one name with different values")
    text = texts.pop() if texts else b""
    if text and not _is_token68(text):
        raise MalformedCredential("the credential is malformed")
    return text.decode("ascii") if text else None


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


def _parameters(query: bytes, name: bytes) -> list[bytes]:
    pieces = [piece for piece in query.split(b"&") if _parameter_name(piece) == name]
    return list(dict.fromkeys(unquote_to_bytes(piece.partition(b"=")[2]) for piece in pieces))


def _parameter(query: bytes, name: bytes) -> str | None:
    values = _parameters(query, name)
    if len(values) > 1:
        raise TokenRejected("two query parameters of one name with different values")
    value = values.pop() if values else b""
    return _ascii(value) if value else None
