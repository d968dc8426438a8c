"""Users that sign in, ask, and leave, all the while, and what they saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Client
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from tests.conftest import RULES
from tests.sessions.by_hand import token
from tests.waiting import HANG_SECONDS

CLIENT = Client(ip_address="203.0.113.9", user_agent="okhttp/4.12.0")
_CHECKS = 5


class Traffic:
    """`seen` counts answers by their word, faults by their kind. `revived` are tokens that passed after their end had
    been acknowledged, `mixed_up` answers about a session that is not the asked user's."""

    def __init__(self, store_client: StoreClient) -> None:
        self.runner = ScriptRunner(store_client, key_prefix="gk:", rules=Rules(**_rules()))
        self.store = SessionStore(self.runner)
        self.seen: Counter[str] = Counter()
        self.revived: list[str] = []
        self.mixed_up: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self._session_ids: dict[int, str] = {}
        self._last = time.monotonic()
        self.gap = 0.0

    def __repr__(self) -> str:
        return f"<Traffic {dict(self.seen)}, {len(self.ended)} ended, {self.gap:.2f} s without service>"

    async def check(self, user: str, reference: str, *, over: bool = False) -> str:
        try:
            checked = await self.store.check(token(reference, user=user), CLIENT)
        except StoreUnavailable as error:
            self.seen[error.kind] += 1
            await asyncio.sleep(0.01)
            return error.kind
        self._served()
        self.seen[checked.outcome] += 1
        if checked.session_id and self._session_ids.setdefault(checked.session_id, user) != user:
            self.mixed_up.append(user)
        if over and checked.outcome in ("touched", "opened"):
            self.revived.append(reference)
        return checked.outcome

    def _served(self) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self._last)
        self._last = now

    async def leave(self, user: str, reference: str) -> bool:
        """Whether the end was acknowledged."""
        try:
            await self.store.log_out(token(reference, user=user), CLIENT)
        except StoreUnavailable as error:
            self.seen[error.kind] += 1
            return False
        self.ended.append((user, reference))
        return True

    async def live(self, user: str) -> None:
        """One user's life: session after session."""
        number = 0
        while True:
            reference, number = f"{user}-{number}", number + 1
            for _ in range(_CHECKS):
                await self.check(user, reference)
            if await self.leave(user, reference):
                await self.check(user, reference, over=True)

    async def look_back(self) -> None:
        """Asks with every token whose end was acknowledged."""
        for start in range(0, len(self.ended), 200):
            await asyncio.gather(*(self.check(*each, over=True) for each in self.ended[start : start + 200]))

    async def serves_again(self, users: int = 32) -> float:
        """Until every one of so many new users gets in; how many seconds that took."""
        begun = time.monotonic()
        while True:
            name = f"new{begun}"
            words = await asyncio.gather(*(self.check(f"{name}-{user}", f"{name}-{user}") for user in range(users)))
            if set(words) <= {"opened", "touched"}:
                return time.monotonic() - begun
            assert time.monotonic() < begun + HANG_SECONDS, self

    def assert_sound(self) -> None:
        assert not self.revived, f"{len(self.revived)} of {self!r}"
        assert not self.mixed_up, self


def _rules() -> dict[str, Any]:
    return {name: getattr(RULES, name) for name in Rules.__struct_fields__}


@asynccontextmanager
async def traffic(
    url: str, *, users: int = 16, replicas: int = 0, timeout_seconds: float = 1.0, ca_file: str | None = None
) -> AsyncIterator[Traffic]:
    """Traffic to the store at `url`, which has begun."""
    store_client = StoreClient(url, timeout_seconds=timeout_seconds, replicas=replicas, ca_file=ca_file)
    made = Traffic(store_client)
    tasks: list[asyncio.Task[None]] = []
    try:
        await made.serves_again(users)
        made.gap = 0.0
        made.seen.clear()
        tasks = [asyncio.create_task(made.live(f"u{number}")) for number in range(users)]
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # First, for what it repeats would open connections again.
        await made.runner.recent.aclose()
        await store_client.aclose()
