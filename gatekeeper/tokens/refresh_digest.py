"""The digests by which observed refresh tokens are known.

A backend may accept one token in several spellings: percent-encoded in a cookie or not, padded, a JWT whose signature
ends in other spare bits. So a refresh token is known by what it says, not by how it is written (rule 5.17).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from gatekeeper.tokens.credentials import expiry_in
from gatekeeper.tokens.issuer import digest

_MOST_DECODINGS: Final = 3
_PERCENT: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_SCHEME: Final = re.compile(rb"bearer\s+", re.IGNORECASE)
# Express: `s:`, the value, and its HMAC-SHA256 in base64 without padding.
_SIGNED_COOKIE: Final = re.compile(rb"s:(.+)\.[A-Za-z0-9+/]{43}", re.DOTALL)
# The signature is no part of it: lenient decoders skip padding, spare bits and characters of no meaning there.
_JWT: Final = re.compile(rb"([A-Za-z0-9_+/-]+)=*\.([A-Za-z0-9_+/-]*)=*\.")
_ENCRYPTED_PARTS: Final = 4
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_OTHER: Final = re.compile(rb"[^A-Za-z0-9+/]")
_DOT: Final = b"."


class KnownToken(msgspec.Struct, frozen=True):
    """The digests that name a refresh token. `signed` also says the signature of a JWT, so that only who holds it can
    name it. `expires_at` (seconds) is read without verification."""

    digest: str
    signed: str
    expires_at: float | None


def known_token(text: str) -> KnownToken:
    """Return what `text` is known by."""
    content, signature, payload = _canonical(text)
    said = _digest(content)
    signed = said if signature is None else _digest(content + _DOT + signature)
    return KnownToken(said, signed, expiry_in(payload) if payload is not None else None)


def placed_digest(place: str, text: str) -> str:
    """Return the digest of a text together with its place (`learnable.place_of`), a JWT with its signature."""
    return digest(f"{place}\0{known_token(text).signed}")


def lookup_digests(texts: Iterable[str]) -> list[str]:
    """Return the digests under which these texts may be known, each once."""
    return list(dict.fromkeys(known_token(text).digest for text in texts))


def _digest(content: bytes) -> str:
    return digest(content.decode("utf-8", "surrogateescape"))


def _canonical(text: str) -> tuple[bytes, bytes | None, bytes | None]:
    """Return what a text says; of one that is a JWT also the signature, and the payload if it can be read."""
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(_MOST_DECODINGS):
        if not _PERCENT.search(content):
            break
        content = unquote_to_bytes(content)
    content = content.strip(b' \t\r\n"')
    if scheme := _SCHEME.match(content):
        content = content[scheme.end() :]
    if signed := _SIGNED_COOKIE.fullmatch(content):
        content = signed[1]
    return _jwt(content) or (content.rstrip(b"="), None, None)


def _jwt(content: bytes) -> tuple[bytes, bytes, bytes | None] | None:
    """Return the decoded header and payload of a JWT, its signature, and the payload alone; of an encrypted one all but
    its tag, and the tag."""
    found = _JWT.match(content)
    header = _decoded(found[1]) if found else None
    if found is None or header is None or header.lstrip()[:1] != b"{":
        return None
    if b'"enc"' in header:
        _, *parts = content.split(_DOT)
        *said, tag = [_decoded(part) or b"" for part in parts[:_ENCRYPTED_PARTS]]
        return _DOT.join([header, *said]), tag, None
    payload = _decoded(found[2])
    if not payload:
        return None
    return header + _DOT + payload, _decoded(content[found.end() :].partition(_DOT)[0]) or b"", payload


def _decoded(segment: bytes) -> bytes | None:
    """Decode base64 as the most lenient decoders do: without what is not of its alphabet."""
    plain = _OTHER.sub(b"", segment.translate(_URL_SAFE))
    try:
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4))
    except binascii.Error:
        return None
