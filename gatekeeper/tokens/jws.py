"""Parse and verify compact JWS tokens; the claims are checked in `claims`.

A token is parsed strictly before any key is used, so that one signed content has one spelling (RFC 7515 section 5.2;
GHSA-hxm8-2xgr-2p9m), and the header cannot switch on a feature.
"""

from __future__ import annotations

import binascii
import functools
import re
from collections.abc import Container
from typing import Any

import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens import strict_json
from gatekeeper.tokens.keys import KeySource
from gatekeeper.tokens.verify_queue import VerifyQueue

# The default of MAX_HEADER_BYTES: no request holds a longer one. This bounds all later work.
MAX_TOKEN_BYTES = 64 * 1024

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_TO_BASE64 = str.maketrans("-_", "+/")
# The last character of a segment has two or four unused bits. They must be zero (RFC 4648 section 3.5), else one token
# has four or sixteen spellings.
_LAST_OF_TWO = frozenset("AQgw")
_LAST_OF_THREE = frozenset("AEIMQUYcgkosw048")
# Accepted values of `typ` (RFC 7515 section 4.1.9) in the form of `JoseHeader.type`. A header without `typ` passes.
ACCESS_TYPES = frozenset({"jwt", "at+jwt"})
# `crit`: no extension is supported (RFC 7515 section 4.1.11, CVE-2026-32597). `b64`: RFC 7797, GHSA-w7vc-732c-9m39.
# `zip`: nothing is decompressed (CVE-2024-28102). `cty`: a nested token is not an access token (RFC 7519 section 5.2).
_FORBIDDEN = frozenset({"crit", "b64", "zip", "cty"})


class JoseHeader(msgspec.Struct, frozen=True):
    """The members of a JOSE header that are used. `type` is `typ` in lower case, without `application/`.

    `jku`, `x5u`, `jwk` and `x5c` are never fetched or trusted (rule 5.2).
    """

    algorithm: str
    kid: str | None
    type: str | None


class Jws(msgspec.Struct, frozen=True):
    """A parsed compact JWS. `signing_input` is that of RFC 7515 section 5.2 step 8."""

    header: JoseHeader
    payload: bytes
    signing_input: bytes
    signature: bytes


def parse(
    token: str,
    algorithms: Container[str],
    types: Container[str] = ACCESS_TYPES,
    *,
    max_bytes: int = MAX_TOKEN_BYTES,
) -> Jws:
    """Parse `token` without verifying it. Its `alg` must be in `algorithms`, and its `typ`, if any, in `types`.

    Raises `TokenRejected` for anything but one compact JWS in canonical base64url without padding, such as JWE, JSON
    serialization and unsecured tokens (RFC 8725 section 3.2).
    """
    match = _segments(token, max_bytes)
    head, payload, signature = match.groups()
    header = _header(head)
    if header.algorithm not in algorithms:
        raise TokenRejected("the algorithm is not in the allow-list")
    if header.type is not None and header.type not in types:
        raise TokenRejected("typ is that of another kind of token")
    return Jws(header, _decode(payload), token[: match.end(2)].encode("ascii"), _decode(signature))


def unverified_payload(token: str) -> bytes:
    """Return the payload of a compact JWS without verifying it: it must never grant anything.

    Raises `TokenRejected` where the text does not have that form.
    """
    return _decode(_segments(token)[2])


def unverified_header(token: str) -> bytes:
    """Return the header of a compact JWS without verifying it, as `unverified_payload` does its payload."""
    return _decode(_segments(token)[1])


def _segments(token: str, max_bytes: int = MAX_TOKEN_BYTES) -> re.Match[str]:
    if len(token) > max_bytes:
        raise TokenRejected(f"the token is longer than {max_bytes} bytes")
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise TokenRejected("the token is not three base64url segments")
    return match


async def verify(
    token: str,
    *,
    keys: KeySource,
    algorithms: Container[str],
    verify_queue: VerifyQueue,
    types: Container[str] = ACCESS_TYPES,
    max_bytes: int = MAX_TOKEN_BYTES,
) -> Jws:
    """Parse `token` as `parse` does, and verify it with one of `keys`.

    All that needs no key is checked first; then each signature waits in `verify_queue`. Raises `TokenRejected`,
    `KeysUnavailable` from `keys`, and `TooManySignatures`.
    """
    jws = parse(token, algorithms, types, max_bytes=max_bytes)
    if await _is_signed(jws, keys, verify_queue):
        return jws
    # A provider may publish a new key under an old id, which a lookup by id cannot notice.
    if await keys.recheck() and await _is_signed(jws, keys, verify_queue):
        return jws
    raise TokenRejected("no key verifies the signature")


async def _is_signed(jws: Jws, keys: KeySource, verify_queue: VerifyQueue) -> bool:
    algorithm = jws.header.algorithm
    for key in await keys.find(algorithm=algorithm, kid=jws.header.kid):
        if key.algorithm != algorithm:
            continue
        await verify_queue.wait_turn()
        if key.verifies(jws.signing_input, jws.signature):
            return True
    return False


def _decode(segment: str) -> bytes:
    rest = len(segment) % 4
    last = segment[-1]
    if rest == 1 or (rest == 2 and last not in _LAST_OF_TWO) or (rest == 3 and last not in _LAST_OF_THREE):
        raise TokenRejected("a segment is not canonical base64url")
    return binascii.a2b_base64(segment.translate(_TO_BASE64) + "=" * (-len(segment) % 4))


# Cached: an issuer writes the same header in all of its tokens, or one for each key.
@functools.lru_cache(maxsize=64)
def _header(segment: str) -> JoseHeader:
    try:
        header = strict_json.loads(_decode(segment))
    except ValueError:
        raise TokenRejected("the header is not strict JSON") from None
    if not isinstance(header, dict):
        raise TokenRejected("the header is not an object")
    algorithm: Any = header.get("alg")
    kid: Any = header.get("kid")
    if not isinstance(algorithm, str):
        raise TokenRejected("the header has no alg")
    if isinstance(kid, int) and not isinstance(kid, bool):
        kid = str(kid)
    if not (isinstance(kid, str) or "kid" not in header):
        raise TokenRejected("kid is neither a string nor an integer")
    if not _FORBIDDEN.isdisjoint(header):
        raise TokenRejected("the header has crit, b64, zip or cty")
    return JoseHeader(algorithm, kid, _type(header["typ"]) if "typ" in header else None)


def _type(typ: Any) -> str:
    if not isinstance(typ, str):
        raise TokenRejected("typ is not a string")
    return normalise_type(typ)


def normalise_type(typ: str) -> str:
    """Return a `typ` in the form in which two are compared.

    It is a media type, in any letter case, and `application/` may be left out (RFC 7515 section 4.1.9).
    """
    return typ.lower().removeprefix("application/")
