"""How often a login may fail: counted in the store, so that it holds across all processes (`scripts/attempts.lua`).

Counted are a user name with an address, and each of the two alone at ten times the limit: several people share an
address, and several addresses may try one name. Only failures count, so the first of very many logins at once are all
let through; how many of one name may be under way in a process is bounded for that.
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
    """Failed logins of user names, from an address (None: not to be told apart). Usually there is one name; a request
    in which several stand counts for each. Raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str, rate: Rate) -> None:
        self._redis = redis
        self._prefix = key_prefix
        self._rate = rate
        self._under_way: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<LoginAttempts {self._rate.number:g} in {self._rate.seconds:g} s>"

    async def wait_seconds(self, names: Sequence[str], address: str | None) -> int:
        """0 where a login may be tried, or for how many whole seconds there is no point in it. Who gets a 0 enters
        `under_way` before anything else is awaited."""
        if any(self._under_way[name] >= _AT_ONCE for name in names):
            return 1
        with self.under_way(names):
            # One after another: who is kept out by the first must not use up the turn of somebody else with the next.
            for key, limit in self._counted(names, address):
                if wait := await self._one("ask", key, limit):
                    return math.ceil(wait / 1_000_000)
        return 0

    async def failed(self, names: Sequence[str], address: str | None) -> None:
        await asyncio.gather(*(self._one("fail", key, limit) for key, limit in self._counted(names, address)))

    async def succeeded(self, names: Sequence[str], address: str | None) -> None:
        """Forgets what failed under this name from this address. The other counts stay: who has an account of their own
        must not clear the way to somebody else's, not by naming them beside it either."""
        if len(names) == 1:
            key, limit = self._counted(names, address)[0]
            await self._one("forget", key, limit)

    @contextmanager
    def under_way(self, names: Sequence[str]) -> Iterator[None]:
        """A login while its answer is not known."""
        self._under_way.update(names)
        try:
            yield
        finally:
            self._under_way.subtract(names)
            for name in names:
                if not self._under_way[name]:
                    del self._under_way[name]

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
            raise StoreUnavailable("the session store answered for somebody else", kind="protocol")
        return int(reply[1])


def _digest(*parts: str) -> str:
    """What people type as a user name may be their password: no key shows it."""
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
