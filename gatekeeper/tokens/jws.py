"""The JWS layer: is this text one signed token, and did one of our keys sign it? Claims are not looked at here.

A token is read strictly before any key is touched, so that one signed content has one spelling (RFC 7515 section
5.2; GHSA-hxm8-2xgr-2p9m) and a header can only say what it is allowed to say.
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
from gatekeeper.tokens.keys import Keys
from gatekeeper.tokens.verify_queue import VerifyQueue

# nginx and Apache end a header line at 8 KiB, so no token in use is longer; all later work is bounded by this.
MAX_TOKEN_BYTES = 8192

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_TO_BASE64 = str.maketrans("-_", "+/")
# The last character of a segment carries two or four bits that no octet uses. They must be zero (RFC 4648 section
# 3.5): with other bits the same token has four or sixteen spellings.
_LAST_OF_TWO = frozenset("AQgw")
_LAST_OF_THREE = frozenset("AEIMQUYcgkosw048")
# `typ` (RFC 7515 section 4.1.9) in the form of `JoseHeader.type`; a header without one says nothing and passes.
ACCESS_TYPES = frozenset({"jwt", "at+jwt"})
# `crit`: we understand no extension (RFC 7515 section 4.1.11, CVE-2026-32597). `b64`: RFC 7797, GHSA-w7vc-732c-9m39.
# `zip`: nothing is inflated (CVE-2024-28102). `cty`: a nested token is not an access token (RFC 7519 section 5.2).
_FORBIDDEN = frozenset({"crit", "b64", "zip", "cty"})


class JoseHeader(msgspec.Struct, frozen=True):
    """What counts of a JOSE header. `jku`, `x5u`, `jwk` and `x5c` are not here: they are never fetched or trusted.
    `type` is the `typ` in lower case and without `application/`, `None` where there is none."""

    algorithm: str
    kid: str | None
    type: str | None


class Jws(msgspec.Struct, frozen=True):
    """A compact JWS in parts. `signing_input` is RFC 7515 section 5.2 step 8."""

    header: JoseHeader
    payload: bytes
    signing_input: bytes
    signature: bytes


def parse(token: str, algorithms: Container[str], types: Container[str] = ACCESS_TYPES) -> Jws:
    """The parts of `token`, whose `alg` is one of `algorithms` and whose `typ`, if it has one, is one of `types`.
    Nothing is verified yet.

    Raises `TokenRejected` for all that is not exactly one compact JWS in canonical base64url without padding: JWE,
    JSON serialization and unsecured tokens (RFC 8725 section 3.2) included.
    """
    match = _segments(token)
    head, payload, signature = match.groups()
    header = _header(head)
    if header.algorithm not in algorithms:
        raise TokenRejected("the algorithm is not in the allow-list")
    if header.type is not None and header.type not in types:
        raise TokenRejected("typ is that of another kind of token")
    return Jws(header, _decode(payload), token[: match.end(2)].encode("ascii"), _decode(signature))


def unverified_payload(token: str) -> bytes:
    """The payload of what has the form of a compact JWS, whoever made it. Nothing may be granted by it.

    Raises `TokenRejected` for another form.
    """
    return _decode(_segments(token)[2])


def _segments(token: str) -> re.Match[str]:
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRejected("the token is longer than 8 KiB")
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise TokenRejected("not three base64url segments")
    return match


async def verify(
    token: str,
    *,
    keys: Keys,
    algorithms: Container[str],
    verify_queue: VerifyQueue,
    types: Container[str] = ACCESS_TYPES,
) -> Jws:
    """The parts of a token that one of `keys` signed with one of `algorithms`; its `typ`, if any, is one of `types`.
    What needs no key is looked at first, and every signature waits for one of `turns`.

    Raises `TokenRejected`, `KeysUnavailable` from `keys`, and `TooManySignatures`.
    """
    jws = parse(token, algorithms, types)
    if await _is_signed(jws, keys, verify_queue):
        return jws
    # A provider may put a new key under an old id, which an exact lookup cannot notice.
    if await keys.recheck() and await _is_signed(jws, keys, verify_queue):
        return jws
    raise TokenRejected("no key verifies the signature")


async def _is_signed(jws: Jws, keys: Keys, verify_queue: VerifyQueue) -> bool:
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


# An issuer writes one header for all of its tokens, or one for each key.
@functools.lru_cache(maxsize=64)
def _header(segment: str) -> JoseHeader:
    try:
        header = strict_json.loads(_decode(segment))
    except ValueError:
        raise TokenRejected("the header is not strict JSON") from None
    if not isinstance(header, dict):
        raise TokenRejected("the header is not an object")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise TokenRejected("the header has no alg")
    if not (isinstance(kid, str) or "kid" not in header):
        raise TokenRejected("kid is not a string")
    if not _FORBIDDEN.isdisjoint(header):
        raise TokenRejected("the header has crit, b64, zip or cty")
    return JoseHeader(algorithm, kid, _type(header["typ"]) if "typ" in header else None)


def _type(typ: Any) -> str:
    # RFC 7515 section 4.1.9: a media type, compared without case, `application/` left out where no other slash is.
    if not isinstance(typ, str):
        raise TokenRejected("typ is not a string")
    return typ.lower().removeprefix("application/")
