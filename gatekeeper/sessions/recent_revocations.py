"""The revocations that this process has acknowledged lately, and their repetition wherever the store may lack them.

    a script ended something, acknowledged ─→ remember
    first connection to another primary ────→ writes: sent before any other call (store/primaries.py) ─→ repeat_soon
    the epoch is missing, older or another ─→ data_lost ─→ repeat_soon: durably, again until acknowledged

A replica that becomes the primary may lack what the old primary acknowledged in its last moments, because another
replica has confirmed it (docs/decisions.md, rule 4.13). Each repetition carries the instant of the first time, so it
never concerns a session that began later. Evictions, and sessions that became idle or expired, are not repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.opening import packed_string
from gatekeeper.sessions.scripts import load
from gatekeeper.store.command import Command, Script

REPEAT_END: Final = load("audit", "common", "upkeep", "arguments", "repeat_end", durable=True)
REPEAT_END_ALL: Final = load("audit", "common", "upkeep", "arguments", "repeat_end_all", durable=True)

_KEPT_SECONDS: Final = 30.0
_MOST: Final = 10_000
_AT_ONCE: Final = 100
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0

_log = logging.getLogger("gatekeeper")


class LossCounter(Protocol):
    """Counts losses of data. Implemented by `telemetry.metrics.Metrics`."""

    def store_lost_data(self, kind: str) -> None: ...

    def revocation_forgotten(self) -> None:
        """Counts a revocation that was dropped before its time, because there were too many."""


class RecentRevocation(NamedTuple):
    """The call of a script that repeats one revocation, and until when it is kept (`time.monotonic`)."""

    script: Script
    user: str
    arguments: Mapping[str, Any]
    actor: Actor
    kept_until: float


class RecentRevocations:
    """Remembers what was acknowledged in the last 30 seconds, at most 10,000 revocations.

    `prepare` makes the command that repeats one; `run` runs it durably, and raises `StoreUnavailable`.
    """

    def __init__(
        self,
        prepare: Callable[[RecentRevocation], Command],
        run: Callable[[RecentRevocation], Coroutine[Any, Any, None]],
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = _MOST,
    ) -> None:
        self._prepare = prepare
        self._run = run
        self._clock = clock
        self._most = most
        self._kept: deque[RecentRevocation] = deque()
        self._repeating: asyncio.Task[None] | None = None
        self._wanted = False
        self.losses: LossCounter | None = None

    def __repr__(self) -> str:
        return f"<RecentRevocations [{len(self._kept)}]{' repeating' if self.is_repeating else ''}>"

    @property
    def is_repeating(self) -> bool:
        """True until every revocation that may be lacking was acknowledged once more."""
        return self._repeating is not None and not self._repeating.done()

    def remember(self, script: Script, user: str, arguments: Mapping[str, Any], actor: Actor) -> None:
        """Remembers an acknowledged revocation: `script` with `arguments` repeats it."""
        now = self._clock()
        self._forget(now)
        if len(self._kept) >= self._most:
            self._kept.popleft()
            if self.losses is not None:
                self.losses.revocation_forgotten()
        self._kept.append(RecentRevocation(script, user, arguments, actor, now + _KEPT_SECONDS))

    def remember_session(self, user: str, session_id: str, record: bytes, actor: Actor) -> None:
        """Remembers the end of one session, whose record is stored as `record` (packed) since."""
        self.remember(REPEAT_END, user, {"id": session_id, "record": packed_string(record)}, actor)

    def _forget(self, now: float) -> None:
        while self._kept and self._kept[0].kept_until <= now:
            self._kept.popleft()

    # The first connection to another primary (store.primaries.RecentWrites)

    def writes(self) -> Sequence[Callable[[], Command]]:
        """Makes the commands that repeat what is remembered, each when it is needed."""
        self._forget(self._clock())
        return [lambda each=each: self._prepare(each) for each in self._kept]  # type: ignore[misc]

    def written(self, lacking: int) -> None:
        """Takes note that the commands were sent, and how many of them another primary lacked."""
        if lacking:
            _log.warning(
                "session store lost data: another primary lacked %d acknowledged revocations; they were repeated",
                lacking,
            )
            if self.losses is not None:
                self.losses.store_lost_data("failover")
        # Once more, until enough replicas have them.
        self.repeat_soon()

    # Losses of data

    def data_lost(self, kind: str) -> None:
        """Takes note that the epoch of the store was found `missing`, `older` or `another`."""
        if self.losses is not None:
            self.losses.store_lost_data(kind)
        self.repeat_soon()

    def repeat_soon(self) -> None:
        """Begins to repeat what is remembered; returns at once. Must be called in the event loop."""
        if not self._kept:
            return
        self._wanted = True
        if not self.is_repeating:
            self._repeating = asyncio.get_running_loop().create_task(self._repeat())

    async def _repeat(self) -> None:
        left: list[RecentRevocation] = []
        pause = _FIRST_PAUSE_SECONDS
        while self._wanted or left:
            if self._wanted:
                self._wanted = False
                self._forget(self._clock())
                kept = set(map(id, self._kept))
                left = [*(each for each in left if id(each) not in kept), *self._kept]
            failed: list[RecentRevocation] = []
            while left:
                batch, left = left[:_AT_ONCE], left[_AT_ONCE:]
                results = await asyncio.gather(*map(self._run, batch), return_exceptions=True)
                failed += [each for each, result in zip(batch, results, strict=True) if result is not None]
                for result in results:
                    if isinstance(result, BaseException) and not isinstance(result, StoreUnavailable):
                        _log.error("internal error", exc_info=result)
                if failed and not self._wanted:
                    # The store does not take them now: the rest waits with these.
                    failed += left
                    left = []
            left = failed
            if left:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    async def aclose(self) -> None:
        """Stops repeating."""
        if self._repeating is not None:
            self._repeating.cancel()
            await asyncio.gather(self._repeating, return_exceptions=True)
            self._repeating = None
