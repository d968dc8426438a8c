"""Detection of data loss: every running Gatekeeper asks the store twice a second whether it still has its data.

The store holds a random epoch and counts these heartbeats. If the epoch is missing, is a different one, or has counted
fewer heartbeats than this process knows of, then the store has lost data, possibly revocations among them. From then
on, tokens issued before that moment open no sessions (`adopt_not_before`). In a Cluster every primary has an epoch of
its own, since each may lose its data alone. Whichever does, `adopt_not_before` applies to all of them and is written
to all (docs/decisions.md, rule 4.9).

Beside the epoch stands the format in which sessions are stored. A Gatekeeper with another format writes nothing to
that store.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import load_script
from gatekeeper.store.errors import unexpected_reply

EPOCH: Final = load_script(Path(__file__).parent / "scripts", "epoch")
BEAT_SECONDS: Final = 0.5
# Raised with every change after which older scripts would misread what newer ones store, or the other way round
# (docs/operations.md).
SCHEMA: Final = 2

_log = logging.getLogger("gatekeeper")
_LOSSES: Final = {
    b"missing": "it is empty",
    b"older": "it is an older copy, in which sessions that were revoked since may be live again",
    b"another": "it holds the data of another store",
    b"ahead": "its clock is more than a day ahead, by which it deletes what expires",
}
LOSSES: Final = tuple(kind.decode() for kind in _LOSSES)


class _Seen(NamedTuple):
    """An epoch as it was at the last heartbeat; `name` is empty before the first one."""

    name: str = ""
    beats: int = 0


class Epoch:
    """The state of the store's data, as far as this process knows it.

    `adopt_not_before` is in microseconds on the store's clock, or on this host's if these are far apart, and 0 if
    nothing was lost. `id` is empty until the first heartbeat. `in_other_slot` is True in a Cluster, where a script for
    one user cannot read the epoch.
    """

    def __init__(self, redis: StoreClient, *, key_prefix: str) -> None:
        self._redis = redis
        self.in_other_slot: Final = redis.is_cluster
        self.key: Final = f"{key_prefix}epoch".encode()
        self.adopt_not_before = 0
        # By the key of each epoch: one per primary.
        self._seen: dict[bytes, _Seen] = {}
        self._has_our_schema = False
        self._beating: asyncio.Task[float] | None = None
        # Called with the kind of each loss.
        self.on_loss: Callable[[str], None] = _ignored

    def __repr__(self) -> str:
        return f"<Epoch [{self.id or 'unknown'}] of {len(self._seen)}>"

    @property
    def id(self) -> str:
        seen = self._seen.get(self.key)
        return "" if seen is None else seen.name

    async def beat(self) -> float:
        """Send one heartbeat to every primary, and spread the news of a loss to all. Returns the store's clock, in
        seconds since 1970. Callers at the same time share one heartbeat. Raises `StoreUnavailable`."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.get_running_loop().create_task(self._beat())
            self._beating.add_done_callback(_retrieve_exception)
        return await asyncio.shield(self._beating)

    async def _beat(self) -> float:
        clocks: list[float] = []
        try:
            if not self._has_our_schema:
                # Before the format is known, nothing is written to any other primary.
                clocks.append(await self._beat_at(self.key))
                self._has_our_schema = True
            keys = await self._redis.keys_on_primaries(self.key, list(self._seen))
            # A key that another one replaces is asked once more: its slot may have moved without its data.
            asked = dict.fromkeys([*keys, *self._seen])
            clocks += await self._beat_at_all([key for key in asked if key != self.key or not clocks])
        except StoreUnavailable as error:
            if error.kind == "schema":
                self._has_our_schema = False
            raise
        # A primary whose slot has moved is watched by another key from now on.
        self._seen = {key: self._seen[key] for key in keys}
        self._redis.probe_succeeded()
        return clocks[0]

    async def _beat_at_all(self, keys: Sequence[bytes]) -> list[float]:
        """Send heartbeats to several primaries. While one is silent, those that replied get their next ones in time."""
        if not keys:
            return []
        beats = {key: self._start_beat(key) for key in keys}
        first = list(beats.values())
        try:
            while (await asyncio.wait(first, timeout=BEAT_SECONDS))[1]:
                beats |= {key: self._start_beat(key) for key, task in beats.items() if task.done()}
            await asyncio.wait(beats.values())
        finally:
            for task in beats.values():
                task.cancel()
        faults = [fault for task in beats.values() if isinstance(fault := task.exception(), StoreUnavailable)]
        if any(fault.kind == "schema" for fault in faults):
            raise next(fault for fault in faults if fault.kind == "schema")
        if len(faults) < len(beats):
            # A silent primary says nothing about the others.
            self._redis.probe_succeeded()
        return [task.result() for task in beats.values()]

    def _start_beat(self, key: bytes) -> asyncio.Task[float]:
        task = asyncio.get_running_loop().create_task(self._beat_at(key))
        task.add_done_callback(_retrieve_exception)
        return task

    async def _beat_at(self, key: bytes) -> float:
        """Send a heartbeat to one epoch. Returns the clock of its primary."""
        known = self._seen.get(key, _Seen())
        host = int(time.time() * 1_000_000)
        arguments = (known.name, known.beats, secrets.token_hex(16), self.adopt_not_before, SCHEMA, host)
        reply = await self._redis.call(EPOCH.command((key,), arguments), is_probe=True)
        try:
            replied_key, epoch, beats, adopt_not_before, found, now = reply
            seen, instant, clock = _Seen(epoch.decode(), int(beats)), int(adopt_not_before), int(now) / 1e6
        except (ValueError, TypeError, AttributeError):
            replied_key = None
        if replied_key != key:
            raise unexpected_reply()
        self._seen[key] = seen
        self.adopt_not_before = max(self.adopt_not_before, instant)
        if known.name and found in _LOSSES:
            _log.warning("session store lost data: %s; tokens issued until now open no sessions", _LOSSES[found])
            self.on_loss(found.decode())
        return clock

    async def aclose(self) -> None:
        """Cancel a heartbeat that is in flight."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating], timeout=0.05)
            self._beating = None


def _ignored(kind: str) -> None:
    """Ignore a loss: nothing depends on it."""


def _retrieve_exception(beat: asyncio.Task[float]) -> None:
    """Mark an exception as retrieved, since the caller may have left; asyncio would log it otherwise."""
    if not beat.cancelled():
        beat.exception()
