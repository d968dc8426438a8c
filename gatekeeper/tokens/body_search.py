"""Search a request body for tokens and user names in unexpected places.

A backend may read a body in ways that Gatekeeper cannot know: as JSON or as a form, under any member name, the first or
the last of two values, compressed, in UTF-16, or with trailing bytes. No such choice may hide the refresh token of an
ended session, or the user name of a failed login. So every decoding of the body is searched for texts that look like a
token, and for values that follow the name of a user name member. The results are only looked up, never trusted.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

import brotli

from gatekeeper.tokens.credentials import MAX_BODY_BYTES, normalise_user_name

# A shorter refresh token could be guessed, so it is no secret.
_MIN_TOKEN_CHARACTERS: Final = 16
_RUN: Final = re.compile(rb"""[^\x00-\x20\x7f-\xff"'`,{}\[\]()&;<>\\]{16,8192}""")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{22,}={0,2}")
_UNICODE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
# `user_name`, `USERNAME`, `user.name` and the like, in JSON and in both kinds of form.
_NAME: Final = rb"(?:user[._ -]?name|e[._ -]?mail)"
_JSON_NAME: Final = re.compile(rb'"' + _NAME + rb'"\s*:\s*"((?:[^"\\]|\\.){0,2048})"', re.IGNORECASE | re.DOTALL)
_FORM_NAME: Final = re.compile(rb"(?:\A|[&;])" + _NAME + rb"=([^&;]{0,2048})", re.IGNORECASE)
_PART_NAME: Final = re.compile(
    rb'name="?' + _NAME + rb'"?[^\r\n]*\r?\n(?:[^\r\n]+\r?\n)*\r?\n([^\r\n]{0,2048})', re.IGNORECASE
)
_MAX_NAMES: Final = 8


class Unsearchable(ValueError):
    """The body is too large, has an unknown encoding, or holds too many candidates."""


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


def find_token_candidates(texts: Iterable[bytes], *, limit: int) -> list[str]:
    """Return every run of characters in `texts` that may be a token. Raises `Unsearchable` for over `limit` of them."""
    found: dict[str, None] = {}
    for text in texts:
        for variant in _unescaped(text):
            for run in _RUN.findall(variant):
                for candidate in (run, run.partition(b"=")[2], run.partition(b":")[2]):
                    if len(candidate) >= _MIN_TOKEN_CHARACTERS:
                        found[candidate.decode("ascii")] = None
            if len(found) > limit:
                raise Unsearchable
    return list(found)


def _unescaped(text: bytes) -> list[bytes]:
    """Return `text` as it is, without the escapes of JSON and of URLs, and what its runs of base64 decode to."""
    plain = _UNICODE.sub(lambda match: bytes((int(match[1], 16),)), text).replace(b"\\/", b"/")
    variants = dict.fromkeys((text, plain, unquote_to_bytes(text)))
    for run in _BASE64.findall(text):
        try:
            decoded = binascii.a2b_base64(run.rstrip(b"=") + b"=" * (-len(run.rstrip(b"=")) % 4))
        except binascii.Error:
            continue
        if decoded.isascii():
            variants[decoded] = None
    return list(variants)


def find_user_names(texts: Sequence[bytes]) -> tuple[str, ...]:
    """Return the user names in `texts`, normalised; at most eight."""
    found: dict[str, None] = {}
    for text in texts:
        plain = _UNICODE.sub(lambda match: bytes((int(match[1], 16),)), text)
        for raw in (*_JSON_NAME.findall(plain), *_PART_NAME.findall(text)):
            found[normalise_user_name(raw.decode("utf-8", "replace"))] = None
        for raw in _FORM_NAME.findall(_unquote_names(text)):
            found[normalise_user_name(unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace"))] = None
    return tuple(name for name in found if name)[:_MAX_NAMES]


def _unquote_names(text: bytes) -> bytes:
    """Percent-decode the field names of a form, but not the values."""
    pieces = (piece.partition(b"=") for piece in text.split(b"&"))
    return b"&".join(unquote_to_bytes(name.replace(b"+", b" ")) + equals + value for name, equals, value in pieces)
