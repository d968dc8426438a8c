"""The sessions that texts of a request name, by their digests: as refresh tokens, or as texts that were learnt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gatekeeper.sessions.sign_ins import SignIns, TokenLookup
from gatekeeper.tokens.refresh_digest import known_token

Link = tuple[str, TokenLookup]


async def holder_of(sign_ins: SignIns, token: str) -> tuple[str, str] | None:
    """The user of a refresh token and the digest by which their sessions know it. A JWT counts with the signature that
    was handed out only: the rest of it may be guessed. Raises `StoreUnavailable`."""
    known = known_token(token)
    user = await sign_ins.user_of(known.signed)
    return None if user is None else (user, known.digest)


async def named_links(sign_ins: SignIns, digests: Sequence[str]) -> list[Link]:
    """The sessions of refresh tokens, each with its user. Raises `StoreUnavailable`."""
    users = await asyncio.gather(*map(sign_ins.user_of, digests))
    named = [(user, each) for user, each in zip(users, digests, strict=True) if user is not None]
    found = await asyncio.gather(*(sign_ins.lookup(user, digest=each) for user, each in named))
    return [(user, link) for (user, _), link in zip(named, found, strict=True)]


async def learnt_links(sign_ins: SignIns, digests: Sequence[str]) -> list[Link]:
    """The sessions that were given texts which may be refresh tokens, each with its user. Raises `StoreUnavailable`."""
    owners = await asyncio.gather(*map(sign_ins.owner_of_learnt, digests))
    distinct = list(dict.fromkeys(owner for owner in owners if owner is not None))
    found = await asyncio.gather(*(sign_ins.lookup(user, session_id=each) for user, each in distinct))
    return [(user, link) for (user, _), link in zip(distinct, found, strict=True)]


async def find_links(sign_ins: SignIns, digests: Sequence[str]) -> list[Link]:
    """The sessions that texts name in either way. Raises `StoreUnavailable`."""
    named, learnt = await asyncio.gather(named_links(sign_ins, digests), learnt_links(sign_ins, digests))
    return [*named, *learnt]
