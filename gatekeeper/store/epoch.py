"""Whether the store still has its data: what a Gatekeeper that runs asks it twice a second.

The store holds a random epoch and a count of these questions. Where the epoch is missing, is another one, or has been
asked fewer times than is known here, the store has lost data: ends among them, perhaps. Then tokens issued until that
moment open no sessions any more (`adopt_not_before`). Of a Cluster every primary has an epoch of its own, for each may
lose its data alone; whichever does, `adopt_not_before` is for everybody, and is written to all.

With the epoch stands the number of the format in which sessions are written. A store with another one is no store for
this Gatekeeper, which writes nothing there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import load_script

EPOCH: Final = load_script(Path(__file__).parent / "scripts", "epoch")
BEAT_SECONDS: Final = 0.5
# Raised with every change after which scripts of before would misread what is stored, or write what those of after
# misread (docs/operations.md).
SCHEMA: Final = 1

_log = logging.getLogger("gatekeeper")
_LOSSES: Final = {
    b"missing": "it is empty",
    b"older": "it is as it was some time ago, and sessions that ended since may live again",
    b"another": "it is another one",
}


class _Known(NamedTuple):
    """Of one epoch; `name` is empty until it was seen once."""

    name: str = ""
    beats: int = 0


class Epoch:
    """What this process knows of the store's data. `adopt_not_before` is in microseconds on the store's clock, 0 where
    nothing was lost; `id` is empty until the store has answered once. `in_other_slot`: in a Cluster the scripts of a
    user cannot read it."""

    def __init__(self, scripts: StoreClient, *, key_prefix: str) -> None:
        self._scripts = scripts
        self.in_other_slot: Final = scripts.is_cluster
        self.key: Final = f"{key_prefix}epoch".encode()
        self.adopt_not_before = 0
        # By the key of each epoch that is watched.
        self._known: dict[bytes, _Known] = {}
        self._is_ours = False
        self._beating: asyncio.Task[float] | None = None

    def __repr__(self) -> str:
        return f"<Epoch [{self.id or 'unknown'}] of {len(self._known)}>"

    @property
    def id(self) -> str:
        known = self._known.get(self.key)
        return "" if known is None else known.name

    async def beat(self) -> float:
        """Looks, and sees to it that a loss is known to everybody; the store's clock, in seconds since 1970. Who asks
        meanwhile gets the same answer. Raises `StoreUnavailable`."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.get_running_loop().create_task(self._beat())
            self._beating.add_done_callback(_retrieved)
        return await asyncio.shield(self._beating)

    async def _beat(self) -> float:
        clocks: list[float] = []
        try:
            if not self._is_ours:
                # Elsewhere nothing is written before it is known that the format is ours.
                clocks.append(await self._look(self.key))
                self._is_ours = True
            keys = await self._scripts.key_on_each(self.key, list(self._known))
            # One that gives way to another is asked once more: its slot may have moved without its data.
            asked = dict.fromkeys([*keys, *self._known])
            clocks += await self._look_at_all([key for key in asked if key != self.key or not clocks])
        except StoreUnavailable as error:
            if error.kind == "schema":
                self._is_ours = False
            raise
        # Of a primary whose slot has moved, the key that lies there now tells.
        self._known = {key: self._known[key] for key in keys}
        self._scripts.vouch()
        return clocks[0]

    async def _look_at_all(self, keys: Sequence[bytes]) -> list[float]:
        """Of several servers, one that does not answer keeps nobody from looking at the others again in their time."""
        if not keys:
            return []
        looking = {key: self._start_looking(key) for key in keys}
        first = list(looking.values())
        try:
            while (await asyncio.wait(first, timeout=BEAT_SECONDS))[1]:
                looking |= {key: self._start_looking(key) for key, task in looking.items() if task.done()}
            await asyncio.wait(looking.values())
        finally:
            for task in looking.values():
                task.cancel()
        faults = [fault for task in looking.values() if isinstance(fault := task.exception(), StoreUnavailable)]
        if any(fault.kind == "schema" for fault in faults):
            raise next(fault for fault in faults if fault.kind == "schema")
        if len(faults) < len(looking):
            # One that is away does not speak for the others.
            self._scripts.vouch()
        return [task.result() for task in looking.values()]

    def _start_looking(self, key: bytes) -> asyncio.Task[float]:
        task = asyncio.get_running_loop().create_task(self._look(key))
        task.add_done_callback(_retrieved)
        return task

    async def _look(self, key: bytes) -> float:
        """Looks at one epoch; the clock of its server."""
        known = self._known.get(key, _Known())
        arguments = (known.name, known.beats, secrets.token_hex(16), self.adopt_not_before, SCHEMA)
        reply = await self._scripts.ask_past_guard(EPOCH, (key,), arguments)
        try:
            asked, epoch, beats, adopt_not_before, found, now = reply
            seen, instant, clock = _Known(epoch.decode(), int(beats)), int(adopt_not_before), int(now) / 1e6
        except (ValueError, TypeError, AttributeError):
            asked = None
        if asked != key:
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        if known.name and found in _LOSSES:
            _log.warning(
                "the session store has lost data: %s; tokens issued until now open no sessions", _LOSSES[found]
            )
        self._known[key] = seen
        self.adopt_not_before = max(self.adopt_not_before, instant)
        return clock

    async def aclose(self) -> None:
        """Asks no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating], timeout=0.05)
            self._beating = None


def _retrieved(beat: asyncio.Task[float]) -> None:
    """Whoever asked may have gone."""
    if not beat.cancelled():
        beat.exception()
