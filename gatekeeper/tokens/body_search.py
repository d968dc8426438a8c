"""Search a request for tokens in unexpected places.

A backend may read a body in ways that Gatekeeper cannot know: as JSON or as a form, under any member name, the first or
the last of two values, compressed, in UTF-16, or with trailing bytes. No such choice may hide the refresh token of an
ended session. So every field of the body (`body_fields.py`), and every decoding of the whole request, is searched for
texts that look like a token. The results are only looked up, never trusted.
"""

from __future__ import annotations

import binascii
import html
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

import brotli

from gatekeeper.http.headers import Headers
from gatekeeper.tokens.body_fields import Field, Unsearchable
from gatekeeper.tokens.credentials import MAX_BODY_BYTES, request_cookies

# A shorter refresh token could be guessed, so it is no secret.
_MIN_TOKEN_CHARACTERS: Final = 16
_RUN: Final = re.compile(rb"""[^\x00-\x20\x7f-\xff"'`,{}\[\]()&;<>\\]{16,}""")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{22,}={0,2}")
_UNICODE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_COOKIE_ESCAPE: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))", re.DOTALL)
_MAX_TOKEN_BYTES: Final = 8192
_TOKEN_NAME: Final = re.compile("refresh|token", re.IGNORECASE)
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_MOST_DECODINGS: Final = 3


def decodings(content: bytes, encoding: bytes) -> list[bytes]:
    """Decode a body in every way that a backend may: as it is, decompressed by `Content-Encoding`, from UTF-16 and -32.

    Raises `Unsearchable` for an unknown encoding, and for over 64 KiB before or after decompression.
    """
    if len(content) > MAX_BODY_BYTES:
        raise Unsearchable
    texts = [content]
    name = encoding.strip().lower()
    if name not in {b"", b"identity"}:
        texts += _decompressed(content, name)
    # ASCII in UTF-16 or UTF-32, in either byte order, is ASCII with NUL bytes in between.
    return [*texts, *(text.replace(b"\0", b"") for text in texts if b"\0" in text)]


def _decompressed(content: bytes, name: bytes) -> Iterator[bytes]:
    if name == b"br":
        yield _unbrotli(content)
    elif name in {b"gzip", b"x-gzip"}:
        yield _inflated(content, 16 + zlib.MAX_WBITS)
    elif name == b"deflate":
        yield _inflated(content, zlib.MAX_WBITS) or _inflated(content, -zlib.MAX_WBITS)
    else:
        raise Unsearchable


def _inflated(content: bytes, bits: int) -> bytes:
    """Decompress every member (RFC 1952 section 2.2): a backend may read the first one only, or all."""
    output = b""
    while content:
        inflater = zlib.decompressobj(bits)
        try:
            output += inflater.decompress(content, MAX_BODY_BYTES + 1 - len(output))
        except zlib.error:
            break
        if len(output) > MAX_BODY_BYTES or inflater.unconsumed_tail or not inflater.eof:
            raise Unsearchable
        content = inflater.unused_data
    return output


def _unbrotli(content: bytes) -> bytes:
    inflater = brotli.Decompressor()
    try:
        output: bytes = inflater.process(content, output_buffer_limit=MAX_BODY_BYTES + 1)
    except brotli.error:
        return b""
    if len(output) > MAX_BODY_BYTES:
        raise Unsearchable
    return output


def find_token_candidates(
    texts: Iterable[bytes], fields: Iterable[Field], headers: Headers, *, limit: int, strict: bool = True
) -> list[str]:
    """Return every text of a request that may be a token: runs of characters in the decodings of its body and query,
    and in its headers, the values of its fields, and its cookies.

    Raises `Unsearchable` for over `limit` of them. So it does with `strict` for a token that no client is given: over
    8,192 bytes, or not ASCII. Without, such a text is left out.
    """
    found: dict[str, None] = {}
    for text in texts:
        for run in _runs(text):
            if strict and len(run) > _MAX_TOKEN_BYTES:
                raise Unsearchable
            found |= dict.fromkeys(_candidates(run))
        if len(found) > limit:
            raise Unsearchable
    for path, value in (*fields, *_named_headers(headers)):
        content = value.strip()
        if strict and (any(map(_TOKEN_NAME.search, path)) or not path):
            _check_form(content)
        # Also as a backend may have it that resolves entities twice, or ignores the lines of a long text.
        for each in (content, html.unescape(content), "".join(content.split()) if "\n" in content else ""):
            if len(each) >= _MIN_TOKEN_CHARACTERS:
                found[each] = None
    found |= dict.fromkeys(_of_cookies(headers))
    for _, line in headers:
        found |= dict.fromkeys(candidate for run in _runs(line) for candidate in _candidates(run))
    if len(found) > limit:
        raise Unsearchable
    return list(found)


def _of_cookies(headers: Headers) -> Iterator[str]:
    for _, value in request_cookies(headers):
        # Python's cookies resolve escapes in a quoted value.
        for each in (value, _COOKIE_ESCAPE.sub(_unescaped_octet, value) if "\\" in value else ""):
            if len(each) >= _MIN_TOKEN_CHARACTERS:
                yield each


def _unescaped_octet(match: re.Match[str]) -> str:
    return chr(int(match[1], 8)) if match[1] else match[2]


def _runs(text: bytes) -> Iterator[bytes]:
    for variant in _unescaped(text):
        yield from _RUN.findall(variant)


def _candidates(run: bytes) -> Iterator[str]:
    for candidate in (run, run.partition(b"=")[2], run.partition(b":")[2]):
        if len(candidate) >= _MIN_TOKEN_CHARACTERS:
            yield candidate.decode("ascii")


def _check_form(value: str) -> None:
    """Raise `Unsearchable` for a text in the place of a token that is too long for one, or not ASCII."""
    if len(value) > _MAX_TOKEN_BYTES or (not value.isascii() and not any(map(str.isspace, value))):
        raise Unsearchable


def _named_headers(headers: Headers) -> Iterator[Field]:
    """Yield the cookies and headers whose names say that they hold a token."""
    for name, line in headers:
        if name == b"cookie":
            for pair in line.split(b";"):
                cookie, _, value = pair.partition(b"=")
                if _TOKEN_NAME.search(cookie.decode("latin-1")):
                    yield Field((cookie.decode("latin-1").strip(),), _percent_decoded(value))
        elif name != b"authorization" and _TOKEN_NAME.search(name.decode("latin-1")):
            yield Field((name.decode("latin-1"),), _percent_decoded(line))
        elif name == b"authorization" and line[:7].lower() == b"bearer ":
            yield Field(("token",), line[7:].decode("utf-8", "replace"))


def _percent_decoded(octets: bytes) -> str:
    return unquote_to_bytes(octets.strip(b' \t"')).decode("utf-8", "replace")


def _unescaped(text: bytes) -> list[bytes]:
    """Return `text` as it is, without the escapes of JSON, URLs (twice too) and XML, and what its runs of base64 decode
    to."""
    plain = _UNICODE.sub(lambda match: bytes((int(match[1], 16),)), text).replace(b"\\/", b"/")
    variants = dict.fromkeys((text, plain))
    once = text
    for _ in range(_MOST_DECODINGS):
        once = unquote_to_bytes(once)
        variants[once] = None
    if b"&" in text:
        variants[html.unescape(text.decode("latin-1")).encode("latin-1", "replace")] = None
    for run in _BASE64.findall(text):
        try:
            decoded = binascii.a2b_base64(run.translate(_URL_SAFE).rstrip(b"=") + b"=" * (-len(run.rstrip(b"=")) % 4))
        except binascii.Error:
            continue
        if decoded.isascii():
            variants[decoded] = None
    return list(variants)
