"""The tokens that a backend's response hands out: which of its texts are good, and belong to one sign-in."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

import msgspec

from gatekeeper.auth.requests import SignInRequest
from gatekeeper.errors import TokenRejected
from gatekeeper.models import Claims
from gatekeeper.sessions.sign_ins import Besides, RefreshToken, SignIns
from gatekeeper.tokens.learnable import place_of, visible_texts
from gatekeeper.tokens.refresh_digest import known_token, placed_digest
from gatekeeper.tokens.response_tokens import GivenTokens, looks_like_jwt
from gatekeeper.tokens.token_places import FoundText
from gatekeeper.tokens.token_warnings import UnusableToken
from gatekeeper.tokens.verifier import Verifier

# Rules 5.12 and 5.13.
MOST_ACCESS_TOKENS: Final = 4
MOST_LEARNT: Final = 8

_NO_IAT: Final = "iat is missing, which has to show that it is new; name its place in GATEKEEPER_LOGIN_TOKEN_POINTERS"
_NOT_NEW: Final = "iat is before the request, so it may be old; name its place in GATEKEEPER_LOGIN_TOKEN_POINTERS"
_NOT_ONE: Final = "it is one of over four, or of several users; name its place in GATEKEEPER_LOGIN_TOKEN_POINTERS"


class NewTokens(msgspec.Struct, frozen=True):
    """The claims of the access token that names the session, and what else was handed out. `text` is that token."""

    claims: Claims
    text: str
    besides: Besides


def refresh_token(token: str | None) -> RefreshToken | None:
    """A backend's refresh token as the store knows it. Its expiry is read without verification: it only tells how
    long to remember the digest."""
    if token is None:
        return None
    known = known_token(token)
    return RefreshToken(known.digest, known.expires_at, known.signed if known.signed != known.digest else "")


async def verified(verifier: Verifier, token: str | None, *, ignore_expiry: bool = False) -> Claims | None:
    """Verify a token; None for one that is not good, from which nothing follows. Where this host's clock is late, a new
    token is from the future: what is learnt from it, or refused because of it, admits no request. Raises
    `KeysUnavailable`."""
    if token is None:
        return None
    try:
        return await verifier.verify(token, ignore_start=True, ignore_expiry=ignore_expiry)
    except TokenRejected:
        return None


async def find_new_tokens(
    verifier: Verifier,
    sign_ins: SignIns,
    request: SignInRequest,
    given: GivenTokens,
    unusable: list[UnusableToken],
) -> NewTokens | None:
    """Find the tokens of a response: the first good access token in a place that has a name; else those elsewhere,
    within the bounds of rule 5.12. Adds to `unusable` what is not good. Raises `StoreUnavailable` and
    `KeysUnavailable`."""
    for place, text in given.named:
        claims = await _verified(verifier, place, text, unusable)
        if claims is not None:
            return NewTokens(claims, text, Besides((), as_learnt(await learnt(verifier, given.learnable, claims))))
    found = await _elsewhere(verifier, sign_ins, request, given, unusable)
    if not found:
        return None
    *more, (text, newest) = sorted(found, key=lambda each: (each[0] != given.refresh_token, each[1].expires_at))
    learnt_texts = await learnt(verifier, given.learnable, newest)
    besides = Besides([claims for _, claims in more], as_learnt(learnt_texts))
    return NewTokens(newest, text, besides)


async def _verified(verifier: Verifier, place: str, text: str, unusable: list[UnusableToken]) -> Claims | None:
    try:
        return await verifier.verify(text, ignore_start=True)
    except TokenRejected as rejected:
        if looks_like_jwt(text):
            unusable.append(UnusableToken(place, text, rejected.why))
        return None


async def _elsewhere(
    verifier: Verifier,
    sign_ins: SignIns,
    request: SignInRequest,
    given: GivenTokens,
    unusable: list[UnusableToken],
) -> Sequence[tuple[str, Claims]]:
    """The access tokens that stand elsewhere, if they are new, few, and of one user. A response may repeat what it was
    sent, and may list other sign-ins: their tokens are not new."""
    # Most issuers count whole seconds.
    oldest = math.floor(request.received_at) - verifier.leeway_seconds
    found: list[tuple[str, Claims]] = []
    for place, text in given.elsewhere:
        claims = await _verified(verifier, place, text, unusable)
        if claims is None:
            continue
        if claims.issued_at is None or claims.issued_at < oldest:
            unusable.append(UnusableToken(place, text, _NOT_NEW if claims.issued_at else _NO_IAT))
        elif request.may_carry(text):
            unusable.append(UnusableToken(place, text, "the request held it already"))
        else:
            found.append((text, claims))
    if len(found) > MOST_ACCESS_TOKENS or len({claims.user for _, claims in found}) > 1:
        unusable += [UnusableToken(place, text, _NOT_ONE) for place, text in given.elsewhere[:1]]
        return ()
    over = await asyncio.gather(*(_is_over(sign_ins, claims) for _, claims in found))
    return [each for each, is_over in zip(found, over, strict=True) if not is_over]


async def _is_over(sign_ins: SignIns, claims: Claims) -> bool:
    """True for a token whose session has ended since it was issued."""
    named = await sign_ins.lookup(claims.user, claims=claims)
    return named.outcome == "ended" and (claims.issued_at or 0) <= (named.ended_at or float("inf"))


async def learnt(verifier: Verifier, texts: Sequence[FoundText], claims: Claims) -> list[FoundText]:
    """The texts that are learnt as refresh tokens: those that are no access tokens and that `claims` do not tell, a
    bounded number of them."""
    found: list[FoundText] = []
    visible = visible_texts(claims.claims) | {claims.user}
    for each in texts:
        text = each.text
        is_access = looks_like_jwt(text) and await verified(verifier, text, ignore_expiry=True) is not None
        if not is_access and unquote(text) not in visible and len(found) < MOST_LEARNT:
            found.append(each)
    return found


def as_learnt(texts: Sequence[FoundText]) -> list[RefreshToken]:
    """The texts as the store learns them: each by itself, and together with its place."""
    found: list[RefreshToken] = []
    for name, text in texts:
        known = known_token(text)
        found.append(RefreshToken(known.digest, known.expires_at))
        found.append(RefreshToken(placed_digest(place_of(name), text), known.expires_at))
    return found
