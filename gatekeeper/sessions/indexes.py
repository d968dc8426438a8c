"""Indexes beside the sessions: from a refresh token or a `sid` to its user, and when which user needs a look.

An index is a hint, written before the record in one batch with it, and confirmed by the user's script. A token without
a record is unknown; a record without an index would be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims
from gatekeeper.sessions.keys import LATEST, SPARE_SECONDS, Keys, Rules, microseconds
from gatekeeper.sessions.scripts import load
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

LEARN: Final = load("learn", durable=True)


class Indexes:
    """Reads and writes the indexes. Every method that is awaited raises `StoreUnavailable`.

    Two sorted sets order users by an instant in microseconds: `due`, at which their next session may be over, and
    `cleanable`, at which ended sessions leave the lists by themselves.
    """

    def __init__(self, redis: StoreClient, keys: Keys, rules: Rules) -> None:
        self._redis = redis
        self._keys = keys
        self._kept_seconds = rules.kept_seconds
        self._due_in_seconds = min(rules.idle_seconds or rules.session_seconds, rules.session_seconds)
        self._index_sids = rules.index_sids

    def for_opening(
        self, claims: Claims, *, refresh: Sequence[str] = (), refresh_expires_at: float | None = None
    ) -> list[Awaitable[None]]:
        """The writes that go before the opening of a session, to be awaited. `refresh` are the digests of its
        refresh token, which expires at `refresh_expires_at` (seconds; None: unknown)."""
        user = claims.user.encode()
        due_at = microseconds(time.time() + self._due_in_seconds)
        writes: list[Awaitable[None]] = [
            self._redis.call(command("ZADD", self._keys.due, "LT", due_at, user, durable=True))
        ]
        if refresh:
            seconds = self._kept_seconds if refresh_expires_at is None else refresh_expires_at - time.time()
            kept = max(seconds, self._kept_seconds)
            writes += [self._set(self._keys.refresh_token(each), user, kept) for each in refresh]
        if self._index_sids and isinstance(sid := claims.claims.get("sid"), str):
            writes.append(self._set(self._keys.sid(sid), user, self._kept_seconds))
        return writes

    async def add_refresh_token(self, digest: str, user: str) -> None:
        await self._set(self._keys.refresh_token(digest), user.encode(), self._kept_seconds)

    async def user_of_refresh_token(self, digest: str) -> str | None:
        return _text(await self._redis.call(command("GET", self._keys.refresh_token(digest))))

    async def user_of_sid(self, sid: str) -> str | None:
        return _text(await self._redis.call(command("GET", self._keys.sid(sid))))

    async def learn(
        self, digest: str, user: str, session_id: int, expires_at: float | None, *, presented: bool = False
    ) -> None:
        """Writes that a session was given a text that may be a refresh token. Given to a second one, it names none. One
        that was only `presented` takes nothing from the session that was given it."""
        key = self._keys.learnt(digest)
        seconds = max(0.0 if expires_at is None else expires_at - time.time(), self._kept_seconds)
        milliseconds = int(min(seconds + SPARE_SECONDS, LATEST) * 1000)
        reply = await self._redis.call(LEARN.command((key,), (f"{session_id} {user}", milliseconds, int(presented))))
        if _list(reply) != [key]:
            raise StoreUnavailable("reply for another key from the session store", kind="protocol")

    async def owner_of_learnt(self, digest: str) -> tuple[str, int] | None:
        """The user and the id of the only session that was given a text which may be a refresh token."""
        owner = _text(await self._redis.call(command("GET", self._keys.learnt(digest))))
        session_id, _, user = (owner or "").partition(" ")
        return (user, int(session_id)) if session_id.isdigit() and user else None

    async def _set(self, key: bytes, user: bytes, seconds: float) -> None:
        milliseconds = int(min(seconds + SPARE_SECONDS, LATEST) * 1000)
        await self._redis.call(command("SET", key, user, "PX", milliseconds, durable=True))

    async def add_due(self, user: bytes, due_at: int) -> None:
        """Sets when to look at the sessions of a user, unless an earlier instant is set."""
        await self._redis.call(command("ZADD", self._keys.due, "LT", due_at, user))

    async def due_users(self, now: int, limit: int) -> list[bytes]:
        """Users due by `now`, at most `limit`."""
        return _list(await self._redis.call(command("ZRANGEBYSCORE", self._keys.due, "-inf", now, "LIMIT", 0, limit)))

    async def claim_due(self, user: bytes, *, until: int) -> bool:
        """Takes a user from `due` for this process. False where another process was faster. Should this process die
        before it has looked, the user is cleanable at `until`."""
        put = self._redis.call(command("ZADD", self._keys.cleanable, "GT", until, user))
        taken = self._redis.call(command("ZREM", self._keys.due, user))
        return bool((await asyncio.gather(put, taken))[-1])

    async def cleanable_users(self, now: int, limit: int) -> list[bytes]:
        """Users cleanable by `now`, at most `limit`."""
        return _list(
            await self._redis.call(command("ZRANGEBYSCORE", self._keys.cleanable, "-inf", now, "LIMIT", 0, limit))
        )

    async def take_cleanable_users(self, limit: int) -> tuple[list[bytes], int]:
        """Takes up to `limit` cleanable users for this process. Returns them, and how many there were before other
        processes took theirs."""
        users = _list(await self._redis.call(command("ZRANGE", self._keys.cleanable, 0, limit - 1)))
        taken = await asyncio.gather(*(self._redis.call(command("ZREM", self._keys.cleanable, user)) for user in users))
        return [user for user, took in zip(users, taken, strict=True) if took], len(users)

    async def set_cleanable(self, user: bytes, at: int) -> None:
        """Sets when ended sessions of a user leave the lists; 0 removes the user."""
        if at:
            await self._redis.call(command("ZADD", self._keys.cleanable, at, user))
        else:
            await self._redis.call(command("ZREM", self._keys.cleanable, user))


def _list(reply: Any) -> list[bytes]:
    if not isinstance(reply, list):
        raise StoreUnavailable("unexpected reply from the session store", kind="protocol")
    return reply


def _text(reply: Any) -> str | None:
    if reply is not None and not isinstance(reply, bytes):
        raise StoreUnavailable("unexpected reply from the session store", kind="protocol")
    return None if reply is None else reply.decode(errors="replace")
