"""What a request could hold although it does not stand where it should.

Whether a refresh token belongs to a session that is over, and whose login it is that fails, must not depend on how the
backend reads a body: in JSON or as a form, by which name, of two values the first or the last, packed, in UTF-16, with
something behind it. So the text is searched, in every way of unpacking it, for whatever looks like a token or follows
the name of a user name. What is found is only ever looked up; nothing is believed.
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

# Refresh tokens of fewer characters are no secrets.
_LEAST_CHARACTERS: Final = 16
_RUN: Final = re.compile(rb"""[^\x00-\x20\x7f-\xff"'`,{}\[\]()&;<>\\]{16,8192}""")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{22,}={0,2}")
_UNICODE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
# `user_name`, `USERNAME`, `user.name` and the like, in JSON, in either kind of form.
_NAME: Final = rb"(?:user[._ -]?name|e[._ -]?mail)"
_JSON_NAME: Final = re.compile(rb'"' + _NAME + rb'"\s*:\s*"((?:[^"\\]|\\.){0,2048})"', re.IGNORECASE | re.DOTALL)
_FORM_NAME: Final = re.compile(rb"(?:\A|[&;])" + _NAME + rb"=([^&;]{0,2048})", re.IGNORECASE)
_PART_NAME: Final = re.compile(
    rb'name="?' + _NAME + rb'"?[^\r\n]*\r?\n(?:[^\r\n]+\r?\n)*\r?\n([^\r\n]{0,2048})', re.IGNORECASE
)
_MOST_NAMES: Final = 8


class Unsearchable(ValueError):
    """More is hidden in the request than anybody looks through."""


def decodings(content: bytes, encoding: bytes) -> list[bytes]:
    """The texts that a body may be read as: as it stands, and unpacked as `Content-Encoding` says, or may say. Raises
    `Unsearchable` for a body that is too long, packed or not."""
    if len(content) > MAX_BODY_BYTES:
        raise Unsearchable
    texts = [content]
    name = encoding.strip().lower()
    if name not in {b"", b"identity"}:
        texts += _unpacked(content, name)
    # UTF-16 and UTF-32 of what is ASCII, in either order of bytes.
    return [*texts, *(text.replace(b"\0", b"") for text in texts if b"\0" in text)]


def _unpacked(content: bytes, name: bytes) -> Iterator[bytes]:
    if name == b"br":
        yield _unbrotli(content)
    elif name in {b"gzip", b"x-gzip"}:
        yield _inflated(content, 16 + zlib.MAX_WBITS)
    elif name == b"deflate":
        yield _inflated(content, zlib.MAX_WBITS) or _inflated(content, -zlib.MAX_WBITS)
    else:
        raise Unsearchable


def _inflated(content: bytes, bits: int) -> bytes:
    """Every member, as far as it goes: which of them a backend reads, only it knows."""
    made = b""
    while content:
        inflater = zlib.decompressobj(bits)
        try:
            made += inflater.decompress(content, MAX_BODY_BYTES + 1 - len(made))
        except zlib.error:
            break
        if len(made) > MAX_BODY_BYTES or inflater.unconsumed_tail or not inflater.eof:
            raise Unsearchable
        content = inflater.unused_data
    return made


def _unbrotli(content: bytes) -> bytes:
    inflater = brotli.Decompressor()
    try:
        made: bytes = inflater.process(content, output_buffer_limit=MAX_BODY_BYTES + 1)
    except brotli.error:
        return b""
    if len(made) > MAX_BODY_BYTES:
        raise Unsearchable
    return made


def find_token_candidates(texts: Iterable[bytes], *, limit: int) -> list[str]:
    """Everything in `texts` that may be a token. Raises `Unsearchable` for more than `most` of them."""
    found: dict[str, None] = {}
    for text in texts:
        for way in _ways(text):
            for run in _RUN.findall(way):
                for candidate in (run, run.partition(b"=")[2], run.partition(b":")[2]):
                    if len(candidate) >= _LEAST_CHARACTERS:
                        found[candidate.decode("ascii")] = None
            if len(found) > limit:
                raise Unsearchable
    return list(found)


def _ways(text: bytes) -> list[bytes]:
    """`text` as it stands, and without the escapes of JSON, of URLs, and of the base64 that a part may be sent in."""
    plain = _UNICODE.sub(lambda match: bytes((int(match[1], 16),)), text).replace(b"\\/", b"/")
    ways = dict.fromkeys((text, plain, unquote_to_bytes(text)))
    for run in _BASE64.findall(text):
        try:
            decoded = binascii.a2b_base64(run.rstrip(b"=") + b"=" * (-len(run.rstrip(b"=")) % 4))
        except binascii.Error:
            continue
        if decoded.isascii():
            ways[decoded] = None
    return list(ways)


def find_user_names(texts: Sequence[bytes]) -> tuple[str, ...]:
    """Every user name in `texts`, normalised: the first few of them."""
    found: dict[str, None] = {}
    for text in texts:
        plain = _UNICODE.sub(lambda match: bytes((int(match[1], 16),)), text)
        for raw in (*_JSON_NAME.findall(plain), *_PART_NAME.findall(text)):
            found[normalise_user_name(raw.decode("utf-8", "replace"))] = None
        for raw in _FORM_NAME.findall(_unquote_names(text)):
            found[normalise_user_name(unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace"))] = None
    return tuple(name for name in found if name)[:_MOST_NAMES]


def _unquote_names(text: bytes) -> bytes:
    """A form with the names of its fields unquoted, and the values as they stand."""
    pieces = (piece.partition(b"=") for piece in text.split(b"&"))
    return b"&".join(unquote_to_bytes(name.replace(b"+", b" ")) + equals + value for name, equals, value in pieces)
