"""Users whose sessions end in every way that there is, one after the other, while something happens to the store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from msgspec import structs

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.sign_ins import RefreshToken, SignIns, Successor
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from tests.conftest import RULES
from tests.faults.traffic import CLIENT
from tests.sessions.by_hand import token

_HOUR = 3600.0


def _issued_before(reference: str, user: str) -> Claims:
    """A token that was there before anything happened."""
    return token(reference, user=user, issued_ago=600)


class Losses:
    """Counts losses of data by kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.forgotten = 0

    def store_lost_data(self, kind: str) -> None:
        self.kinds[kind] += 1

    def revocation_forgotten(self) -> None:
        self.forgotten += 1


class Process:
    """What one Gatekeeper has of the store."""

    def __init__(self, url: str, *, replicas: int = 0, timeout_seconds: float = 1.0) -> None:
        self.client = StoreClient(url, timeout_seconds=timeout_seconds, replicas=replicas)
        self.runner = ScriptRunner(self.client, key_prefix="gk:", rules=structs.replace(RULES, index_sids=True))
        self.store = SessionStore(self.runner)
        self.sign_ins = SignIns(self.runner)
        self.losses = Losses()
        self.runner.recent.losses = self.losses
        self.client.breaker = Breaker(self.runner.epoch.beat, opens=not self.client.is_cluster)

    async def word(self, reference: str, user: str) -> str:
        """The outcome of a check, however long the store is away."""
        while True:
            try:
                return (await self.store.check(_issued_before(reference, user), CLIENT)).outcome
            except StoreUnavailable:
                await asyncio.sleep(0.02)

    async def beats(self) -> None:
        """Sends one heartbeat, however long the store is away."""
        while True:
            try:
                await self.runner.epoch.beat()
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            else:
                return

    async def aclose(self) -> None:
        assert self.client.breaker is not None
        await self.client.breaker.aclose()
        await self.runner.recent.aclose()
        await self.runner.epoch.aclose()
        await self.client.aclose()


@asynccontextmanager
async def process(url: str, *, replicas: int = 0, timeout_seconds: float = 1.0) -> AsyncIterator[Process]:
    made = Process(url, replicas=replicas, timeout_seconds=timeout_seconds)
    try:
        yield made
    finally:
        await made.aclose()


class Leaver(NamedTuple):
    """A user, and what is called to end a session: the tokens in `over` are refused once it is acknowledged, those in
    `live` go on."""

    end: Callable[[], Awaitable[Any]]
    over: list[tuple[str, str]]
    live: list[tuple[str, str]]


Kind = Callable[[Process, str], Awaitable[Leaver]]


def _by_id(reason: EndReason) -> Kind:
    async def make(process: Process, user: str) -> Leaver:
        session_id = (await process.store.check(_issued_before(user, user), CLIENT)).session_id
        return Leaver(lambda: process.store.end(user, session_id, reason), [(user, user)], [])

    return make


async def _logout(process: Process, user: str) -> Leaver:
    await process.store.check(_issued_before(user, user), CLIENT)
    return Leaver(lambda: process.store.log_out(_issued_before(user, user), CLIENT), [(user, user)], [])


async def _never_seen(process: Process, user: str) -> Leaver:
    return Leaver(lambda: process.store.log_out(_issued_before(user, user), CLIENT), [(user, user)], [])


async def _brief(process: Process, user: str) -> Leaver:
    """A session that begins and ends where the failover may lose both."""

    async def live_briefly() -> None:
        await process.store.check(_issued_before(user, user), CLIENT)
        await process.store.log_out(_issued_before(user, user), CLIENT)

    return Leaver(live_briefly, [(user, user)], [])


async def _several(process: Process, user: str) -> list[int]:
    return [
        (await process.store.check(_issued_before(f"{user}-{number}", user), CLIENT)).session_id for number in range(3)
    ]


async def _all(process: Process, user: str) -> Leaver:
    await _several(process, user)
    over = [(f"{user}-{number}", user) for number in range(4)]
    return Leaver(lambda: process.store.end_all(user, EndReason.REVOKED_BY_USER), over, [])


async def _all_others(process: Process, user: str) -> Leaver:
    first, *_ = await _several(process, user)
    over = [(f"{user}-{number}", user) for number in (1, 2, 3)]
    end = lambda: process.store.end_all(user, EndReason.REVOKED_BY_ADMIN, spare=first)  # noqa: E731
    return Leaver(end, over, [(f"{user}-0", user)])


async def _sid(process: Process, user: str) -> Leaver:
    await process.store.check(_issued_before(f"{user}:1", user), CLIENT)
    await process.store.check(_issued_before("other", user), CLIENT)
    over = [(f"{user}:1", user), (f"{user}:2", user), (user, user)]
    end = lambda: process.store.end_sid(user, user, tokens_expire_at=time.time() + _HOUR)  # noqa: E731
    return Leaver(end, over, [("other", user)])


async def _reused(process: Process, user: str) -> Leaver:
    sign_ins = process.sign_ins
    claims, refresh = _issued_before(user, user), RefreshToken(f"{user}-1", None)
    await sign_ins.log_in(claims, CLIENT, exempt=False, refresh=refresh)
    for number in (1, 2):
        made = Successor(f"{user}-{number + 1}", f"{user}-{number}", time.time() + _HOUR, b"sealed")
        assert (await sign_ins.rotate(user, f"{user}-{number}", made)).outcome == "rotated"
    return Leaver(lambda: sign_ins.lookup_refresh_token(user, f"{user}-1"), [(user, user)], [])


async def _left(process: Process, user: str) -> Leaver:
    """A login that presents a token ends its session."""
    await process.store.check(_issued_before(user, user), CLIENT)
    new = token(f"{user}-new", user=user)
    end = lambda: process.sign_ins.log_in(new, CLIENT, exempt=False, refresh=None, presented=token(user, user=user))  # noqa: E731
    return Leaver(end, [(user, user)], [])


KINDS: dict[str, Kind] = {
    "logout": _logout,
    "never-seen": _never_seen,
    "brief": _brief,
    "one": _by_id(EndReason.REVOKED_BY_USER),
    "admin": _by_id(EndReason.REVOKED_BY_ADMIN),
    "deactivate": _by_id(EndReason.DEACTIVATED),
    "issued": _by_id(EndReason.LOGGED_OUT),
    "all": _all,
    "others": _all_others,
    "sid": _sid,
    "reused": _reused,
    "left": _left,
}


class Leavers:
    """Users who leave, each kind beside the others. `acknowledged` holds those who were told that it has happened."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.acknowledged: dict[str, list[Leaver]] = {kind: [] for kind in KINDS}
        self.faults: Counter[str] = Counter()
        self._prepared: dict[str, list[Leaver]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        counts = {kind: len(found) for kind, found in self.acknowledged.items()}
        return f"<Leavers {counts}, faults {dict(self.faults)}, {dict(self.process.losses.kinds)}>"

    async def prepare(self, number: int) -> None:
        """So many users of each kind, before anything happens."""
        for kind, make in KINDS.items():
            self._prepared[kind] = []
            for start in range(0, number, 20):
                users = (f"{kind}{each}" for each in range(start, min(start + 20, number)))
                self._prepared[kind] += await asyncio.gather(*(make(self.process, user) for user in users))

    def begin(self, *, pause: float = 0.01) -> None:
        self._tasks = [asyncio.create_task(self._leave(kind, pause)) for kind in KINDS]

    async def _leave(self, kind: str, pause: float) -> None:
        for leaver in self._prepared[kind]:
            try:
                await leaver.end()
            except StoreUnavailable as error:
                # What has not been acknowledged may or may not have happened.
                self.faults[error.kind] += 1
            else:
                self.acknowledged[kind].append(leaver)
            await asyncio.sleep(pause)

    async def finish(self) -> None:
        """Waits until all have left and what had to be repeated was acknowledged."""
        await asyncio.gather(*self._tasks)
        deadline = time.monotonic() + 60
        while self.process.runner.recent.is_repeating:
            assert time.monotonic() < deadline, "repetitions that were never acknowledged"
            await asyncio.sleep(0.05)

    async def revived(self, process: Process) -> list[str]:
        """Asks another process about everybody: the kinds of those that live although they were told otherwise."""
        found: list[str] = []
        for kind, leavers in self.acknowledged.items():
            for leaver in leavers:
                words = await asyncio.gather(*(process.word(*each) for each in leaver.over))
                found += [kind for word in words if word in ("touched", "opened")]
        return found

    async def lost(self, process: Process) -> list[str]:
        """The kinds of those whose spared sessions do not live."""
        return [
            kind
            for kind, leavers in self.acknowledged.items()
            for leaver in leavers
            for each in leaver.live
            if await process.word(*each) not in ("touched", "opened")
        ]
