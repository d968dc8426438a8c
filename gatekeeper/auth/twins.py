"""Several cookies of one name: which of them is the token.

Another site of the same domain can set a cookie of that name, and a browser keeps one of a former path or domain beside
the new one. Only the signatures and the sessions tell them apart: what does not verify, and what is over, is left out,
and two good sessions are never chosen from (rule 3.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gatekeeper.auth.requests import StandingLookup
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Claims
from gatekeeper.tokens.verifier import Verifier

# Each costs a signature; those that are good are looked up.
MOST_VERIFIED: Final = 16
_MOST_GOOD: Final = 4


class Choice(msgspec.Struct, frozen=True):
    """The text that decides, and those that must not go on."""

    token: str
    left_out: frozenset[str]


async def choose(
    texts: Sequence[str], verifier: Verifier, standings: StandingLookup, *, ignore_times: bool = False
) -> Choice:
    """Choose one of the values of a cookie. Raises `TokenRejected` where two are good, `StoreUnavailable`
    and `KeysUnavailable`."""
    good, expired = await _verified(texts, verifier)
    if not good and ignore_times and expired:
        good = {text: await verifier.verify(text, ignore_start=True, ignore_expiry=True) for text in expired}
    if not good:
        # Refused for what is wrong with it.
        return Choice(expired[0] if expired else texts[0], frozenset(texts))
    if len(good) > _MOST_GOOD:
        raise TokenRejected("more than four good cookies of one name")
    kept = list(good)
    if len(good) > 1:
        standings_of = await standings.of(list(good.values()))
        live = {text: each.session for text, each in zip(good, standings_of, strict=True) if not each.is_over}
        if len(set(live.values())) > 1:
            raise TokenRejected("two good cookies of one name")
        kept = list(live) or kept[:1]
    return Choice(kept[0], frozenset(texts).difference(kept))


async def _verified(texts: Sequence[str], verifier: Verifier) -> tuple[dict[str, Claims], list[str]]:
    """Return the texts that verify, with their claims, and those whose only fault is a time."""
    good: dict[str, Claims] = {}
    expired: list[str] = []
    candidates: list[str] = []
    for text in texts:
        if verifier.may_verify(text, ignore_times=True):
            candidates.append(text)
        if len(candidates) > MOST_VERIFIED:
            raise TokenRejected("too many cookies of one name")
    for text in candidates:
        try:
            good[text] = await verifier.verify_once(text)
        except TokenRejected as rejected:
            if rejected.reason is Reason.TOKEN_EXPIRED:
                expired.append(text)
    return good, expired
