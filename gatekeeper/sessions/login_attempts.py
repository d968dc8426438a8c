"""Limits failed logins, counted in the store for all processes together (scripts/attempts.lua).

Three counts: a user name with an address, and each of the two alone at ten times the limit, because several people
share an address and an attacker may use several addresses. Only failures count, so very many logins at once would all
be let through before the first fails: a process also bounds the logins of one name that are in progress.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.scripts import load
from gatekeeper.store.client import StoreClient
from gatekeeper.store.rate_limit import Rate

ATTEMPTS: Final = load("attempts")
_FACTOR: Final = 10
_AT_ONCE: Final = 256


class LoginAttempts:
    """Counts failed logins by user name and address (None: unknown). A request that holds several user names counts for
    each. Methods that are awaited raise `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str, rate: Rate) -> None:
        self._redis = redis
        self._prefix = key_prefix
        self._rate = rate
        self._in_progress: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<LoginAttempts {self._rate.number:g} in {self._rate.seconds:g} s>"

    async def wait_seconds(self, names: Sequence[str], address: str | None) -> int:
        """Returns 0 where a login may be tried, else the seconds to wait. The caller that gets 0 must enter
        `in_progress` before it awaits anything."""
        if any(self._in_progress[name] >= _AT_ONCE for name in names):
            return 1
        with self.in_progress(names):
            # In turn: a login that the first count holds back must not use up the one attempt that the next allows.
            for key, limit in self._counted(names, address):
                if wait := await self._one("ask", key, limit):
                    return math.ceil(wait / 1_000_000)
        return 0

    async def failed(self, names: Sequence[str], address: str | None) -> None:
        """Counts a failed login."""
        await asyncio.gather(*(self._one("fail", key, limit) for key, limit in self._counted(names, address)))

    async def succeeded(self, names: Sequence[str], address: str | None) -> None:
        """Resets the count of this name with this address. The other counts stay: an attacker with an account of their
        own must not reset the counts of other accounts, nor by naming one beside their own."""
        if len(names) == 1:
            key, limit = self._counted(names, address)[0]
            await self._one("forget", key, limit)

    @contextmanager
    def in_progress(self, names: Sequence[str]) -> Iterator[None]:
        """Counts a login as in progress, until its outcome is known."""
        self._in_progress.update(names)
        try:
            yield
        finally:
            self._in_progress.subtract(names)
            for name in names:
                if not self._in_progress[name]:
                    del self._in_progress[name]

    def _counted(self, names: Sequence[str], address: str | None) -> list[tuple[str, float]]:
        limit, wide = self._rate.number, self._rate.number * _FACTOR
        counted = [(f"pair:{_digest(name, address or '')}", limit) for name in names]
        counted += [(f"name:{_digest(name)}", wide) for name in names]
        return counted if address is None else [*counted, (f"address:{address}", wide)]

    async def _one(self, ask: str, name: str, limit: float) -> int:
        key = f"{self._prefix}login:{name}".encode()
        arguments = (ask, limit, round(self._rate.seconds * 1_000_000))
        reply: Any = await self._redis.call(ATTEMPTS.command((key,), arguments))
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] != key or not isinstance(reply[1], int):
            raise StoreUnavailable("reply for another key from the session store", kind="protocol")
        return int(reply[1])


def _digest(*parts: str) -> str:
    """Hashes a typed user name, which may be a password: no key shows it."""
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
