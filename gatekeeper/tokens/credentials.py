"""Find the credentials in login, refresh and logout requests, and in the responses to them (rule 5.3).

Nothing is verified here, and no function raises: a text that cannot be read holds no credentials. Reading is as lenient
as that of clients and backends, so that no credential passes unseen that they would find.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import parsedate
from typing import Any
from urllib.parse import parse_qsl

import brotli
import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.http.headers import Headers
from gatekeeper.tokens import jws

# Rule 5.3: before and after decompression.
MAX_BODY_BYTES = 64 * 1024
MAX_USER_NAME_LENGTH = 512
# A longer text is presented to no refresh path (rule 5.5).
_MAX_REFRESH_TOKEN_BYTES = 8192
_LONGEST_TAG = 35  # RFC 5646 section 4.4.1

_ACCESS_NAMES = ("access_token", "accessToken", "token", "access")
_REFRESH_NAMES = ("refresh_token", "refreshToken", "refresh")
_USER_NAMES = ("username", "email")
# The last second of the year 9999. A larger number is no time in seconds, but mostly one in milliseconds.
_LAST_SECOND = 253_402_300_799
# RFC 1952 section 2.3.1.
_GZIP_HEAD_BYTES = 10
_GZIP_HEADER_CRC, _GZIP_EXTRA, _GZIP_NAME, _GZIP_COMMENT = 2, 4, 8, 16


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The credentials of a request or a response. `user_name` is normalised for counting failures, not as sent."""

    access_token: str | None = None
    refresh_token: str | None = None
    user_name: str | None = None
    language: str | None = None

    def __repr__(self) -> str:
        found = [name for name in self.__struct_fields__ if getattr(self, name)]
        return f"Credentials({', '.join(found)})"


_HTTP = HTTP.clone(max_line_length=None)


def is_json(content_type: bytes) -> bool:
    """Return true for the `Content-Type`s `application/json` and `application/*+json`, with any parameters."""
    kind = _media_type(content_type)
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def is_form(content_type: bytes) -> bool:
    """Return true for the `Content-Type` `application/x-www-form-urlencoded`, with any parameters."""
    return _media_type(content_type) == b"application/x-www-form-urlencoded"


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip(b" \t").lower()


def from_request(content: bytes, content_type: bytes) -> Credentials:
    """Find the credentials in the body of a login, refresh or logout request: JSON, or a form of either kind.

    A body with another `Content-Type` is read too, as many backends do. `body_search` covers unusual places.
    """
    return from_document(document_of_request(content, content_type))


def document_of_request(content: bytes, content_type: bytes) -> Any:
    """Read the body of a request: as JSON, or a form as an object of its fields. None for one that cannot be read."""
    if len(content) > MAX_BODY_BYTES:
        return None
    if is_form(content_type):
        return _form(content)
    if _media_type(content_type) == b"multipart/form-data":
        return _multipart(content, content_type)
    document = parse_json(content)
    return document if is_json(content_type) or isinstance(document, dict) else _form(content)


def _multipart(content: bytes, content_type: bytes) -> dict[str, str]:
    message = BytesParser(policy=_HTTP).parsebytes(b"Content-Type: " + content_type + b"\r\n\r\n" + content)
    fields: dict[str, str] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        octets = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(octets, bytes):
            fields.setdefault(name, octets.decode("utf-8", "replace"))
    return fields


def _form(content: bytes) -> dict[str, str]:
    # Through latin-1, so that raw bytes over 0x7F and percent-encoded ones give the same text.
    pairs = parse_qsl(content.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields.setdefault(_utf8(name), _utf8(value))
    return fields


def _utf8(octets: str) -> str:
    return octets.encode("latin-1").decode("utf-8", "replace")


def parse_json(content: bytes) -> Any:
    """Decode a JSON body as clients do, the last of two equal names counting; None for one that cannot be read."""
    if len(content) > MAX_BODY_BYTES:
        return None
    try:
        return _decoder.decode(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def usual_access_tokens(document: Any) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the members that are called as access tokens usually are, in a document and in its
    member `data`."""
    return _tokens(_holders(document), _ACCESS_NAMES)


def usual_refresh_token(document: Any) -> str | None:
    """Return the text under the usual names of a refresh token in a document, or in its member `data`."""
    holders = _holders(document)
    # Also one that no refresh may present under its name: it is to be recognised under any other.
    odd = (text for name in _REFRESH_NAMES for text in _texts(holders, name) if text)
    return next((text for _, text in _tokens(holders, _REFRESH_NAMES)), None) or next(odd, None)


def _holders(document: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a document that may hold credentials: the document and its `data`."""
    if not isinstance(document, dict):
        return []
    data = document.get("data")
    return [document, data] if isinstance(data, dict) else [document]


# As floats, because Python refuses to parse integers of over 4,300 digits, and no number is a credential.
_decoder = json.JSONDecoder(parse_int=float)


def from_document(document: Any) -> Credentials:
    """Find the credentials in a document, under their usual names."""
    holders = _holders(document)
    return Credentials(
        access_token=next((text for _, text in _tokens(holders, _ACCESS_NAMES)), None),
        refresh_token=next((text for _, text in _tokens(holders, _REFRESH_NAMES)), None),
        user_name=next(_user_names(holders[:1]), None),
        language=next((text for text in _texts(holders[:1], "language") if len(text) <= _LONGEST_TAG), None),
    )


def _texts(holders: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    for members in holders:
        value = members.get(name)
        if isinstance(value, str):
            yield value


def _tokens(holders: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for members in holders:
        for name in names:
            value = members.get(name)
            if isinstance(value, str) and _is_token(value):
                yield name, value


def _is_token(text: str) -> bool:
    return 0 < len(text) <= jws.MAX_TOKEN_BYTES and text.isascii() and text.isprintable()


def _user_names(holders: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for members in holders:
        for name in _USER_NAMES:
            value = members.get(name)
            if isinstance(value, str) and (found := normalise_user_name(value)):
                yield found


def user_name(members: Mapping[str, Any]) -> str | None:
    """Return the user name among the members of a login request, normalised."""
    return next(_user_names([members]), None)


def normalise_user_name(name: str) -> str:
    """Return a user name in NFKC and lower case, without spaces around it, cut to 512 characters."""
    # A lone surrogate (`"\ud800"`) cannot be encoded as UTF-8.
    readable = name.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFKC", readable).strip().lower()[:MAX_USER_NAME_LENGTH].rstrip()


def inflate(content: bytes, encoding: bytes) -> bytes | None:
    """Undo one `Content-Encoding`: none, `identity`, `gzip`, `x-gzip`, `br`, or `deflate` with or without zlib frame
    (RFC 9110 section 8.4.1.2).

    Returns `None` for other and for several encodings, for broken or incomplete content, and where either side is
    over `MAX_BODY_BYTES`. Never produces more than that.
    """
    name = encoding.strip(b" \t").lower()
    if len(content) > MAX_BODY_BYTES:
        return None
    if name in {b"", b"identity"}:
        return content
    if name in {b"gzip", b"x-gzip"}:
        return _gunzip(content)
    if name == b"deflate":
        # Browsers accept both forms; the first two bytes tell them apart, except in rare cases.
        framed = _raw_inflate(content[2:]) if _has_zlib_head(content) else None
        return _raw_inflate(content) if framed is None else framed
    return _unbrotli(content) if name == b"br" else None


def _gunzip(content: bytes) -> bytes | None:
    """Decompress the first member. Like browsers, ignore its checksum and length, and all that follows."""
    if len(content) < _GZIP_HEAD_BYTES or content[:3] != b"\x1f\x8b\x08":
        return None
    flags, at = content[3], _GZIP_HEAD_BYTES
    if flags & _GZIP_EXTRA:
        at += 2 + int.from_bytes(content[at : at + 2], "little")
    for flag in (_GZIP_NAME, _GZIP_COMMENT):
        if flags & flag:
            end = content.find(b"\0", at)
            if end < 0:
                return None
            at = end + 1
    return _raw_inflate(content[at + (2 if flags & _GZIP_HEADER_CRC else 0) :])


def _has_zlib_head(content: bytes) -> bool:
    # RFC 1950 section 2.2: method 8, a window of up to 32 KiB, no dictionary, and a checksum of the two bytes.
    head = int.from_bytes(content[:2], "big")
    return len(content) > 1 and head % 31 == 0 and (head >> 8) & 15 == 8 and head >> 12 <= 7 and not head & 32


def _raw_inflate(content: bytes) -> bytes | None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        output = inflater.decompress(content, MAX_BODY_BYTES + 1)
    except zlib.error:
        return None
    return output if inflater.eof and len(output) <= MAX_BODY_BYTES else None


def _unbrotli(content: bytes) -> bytes | None:
    inflater = brotli.Decompressor()
    try:
        # The buffer grows in steps, so up to 96 KiB may come out.
        output: bytes = inflater.process(content, output_buffer_limit=MAX_BODY_BYTES + 1)
    except brotli.error:
        return None
    return output if inflater.is_finished() and len(output) <= MAX_BODY_BYTES else None


# Name, path and domain: what tells cookies apart (RFC 6265 section 5.3).
_CookieKey = tuple[bytes, bytes | None, bytes | None]


class SetCookie(msgspec.Struct, frozen=True):
    """A cookie that a response sets."""

    value: str
    http_only: bool


def set_cookies(headers: Headers) -> dict[bytes, SetCookie]:
    """Return the cookies that a response sets, by name, values without quotes. The last one of a name counts.

    A `Set-Cookie` that deletes (an empty value, `Max-Age` of 0 or less, or else `Expires` in 1970 or before) is left
    out. It deletes the cookie of its own path and domain, not a new one beside that: backends move cookies so.
    """
    cookies: dict[_CookieKey, SetCookie] = {}
    for header, line in headers:
        if header.lower() != b"set-cookie":
            continue
        pair, *attributes = line.split(b";")
        name, separator, value = (part.strip(b" \t") for part in pair.partition(b"="))
        if not (separator and name):
            continue
        if len(value) > 1 and value[:1] == value[-1:] == b'"':
            value = value[1:-1]
        has = dict(_attribute(each) for each in attributes)
        key = (name, has.get(b"path"), has.get(b"domain"))
        for other in [each for each in cookies if _may_be_one(each, key)]:
            del cookies[other]
        if value and not _deletes(attributes):
            cookies[key] = SetCookie(value.decode("latin-1"), b"httponly" in has)
    return {name: cookie for (name, _, _), cookie in cookies.items()}


def _attribute(attribute: bytes) -> tuple[bytes, bytes]:
    name, _, text = attribute.partition(b"=")
    return name.strip(b" \t").lower(), text.strip(b" \t")


def _may_be_one(one: _CookieKey, other: _CookieKey) -> bool:
    """True where two cookies replace each other: a path or a domain that is not written may be any."""
    return one[0] == other[0] and all(a is None or b is None or a == b for a, b in zip(one[1:], other[1:], strict=True))


def _deletes(attributes: Sequence[bytes]) -> bool:
    """Return true where the attributes delete a cookie (RFC 6265 section 5.2): unreadable ones are ignored, the last
    of a name counts, and `Max-Age` precedes `Expires`."""
    lives: list[bool] = []
    years: list[int] = []
    for attribute in attributes:
        name, _, text = (part.strip(b" \t").lower() for part in attribute.partition(b"="))
        if name == b"max-age" and text.removeprefix(b"-").isdigit():
            # Not as an integer: Python refuses to parse over 4,300 digits.
            lives.append(not text.startswith(b"-") and bool(text.strip(b"0")))
        elif name == b"expires" and (year := _year(text)) is not None:
            years.append(year)
    return not lives[-1] if lives else bool(years) and years[-1] <= 1970


def _year(date: bytes) -> int | None:
    try:
        parsed = parsedate(date.decode("latin-1"))
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return None if parsed is None else parsed[0]


def request_cookies(headers: Headers) -> list[tuple[bytes, str]]:
    """Return the cookies of a request, values without quotes. `headers` have names in lower case."""
    pairs: list[tuple[bytes, str]] = []
    for header, line in headers:
        for pair in line.split(b";") if header == b"cookie" else ():
            name, separator, value = (part.strip(b" \t") for part in pair.partition(b"="))
            if separator and name:
                unquoted = value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value
                pairs.append((name, unquoted.decode("latin-1")))
    return pairs


def unverified_expiry(token: str) -> float | None:
    """Return the `exp` of a JWT that is not verified, in seconds since 1970.

    It may limit how long something about the token is kept, and never grants anything. Returns `None` for a text that
    is not a JWT, and where `exp` is missing or after the year 9999.
    """
    if len(token) > _MAX_REFRESH_TOKEN_BYTES:
        return None
    try:
        return expiry_in(jws.unverified_payload(token))
    except TokenRejected:
        return None


def expiry_in(payload: bytes) -> float | None:
    """Return the `exp` in the payload of a JWT, as `unverified_expiry` does."""
    if len(payload) > _MAX_REFRESH_TOKEN_BYTES:
        return None
    try:
        members = _decoder.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    expires_at = members.get("exp") if isinstance(members, dict) else None
    if isinstance(expires_at, float) and 0 < expires_at <= _LAST_SECOND:
        return expires_at
    return None
