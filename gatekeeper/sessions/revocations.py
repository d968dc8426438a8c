"""How the end of a session reaches every process.

    script ends a session ─ PUBLISH <prefix>ends ─→ RevocationListener (one a process) ─→ OpenStreams.revoke
                                  connection lost ─→ OpenStreams.check_all ─→ streams.lua

The scripts publish in the same step as they end (`announce` in common.lua). Pub/sub promises nothing, so what it says
is never more than a hint that comes early: whoever has open streams also asks about them, every few seconds and after
each gap (`open_streams.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.store.errors import unavailable_from

_log = logging.getLogger("gatekeeper")

# A connection that says nothing for so long is asked whether it lives, and has as long to answer.
_SILENCE_SECONDS: Final = 1.0
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0
_chance: Final = random.Random()  # noqa: S311 - no secret


class Revocation(msgspec.Struct, frozen=True):
    """What was announced: the end of one session of `user`, or, where `session_id` is None, of every one but
    `spared_id` (0: of every one)."""

    user: str
    session_id: int | None
    spared_id: int
    reason: EndReason

    def applies_to(self, session_id: int) -> bool:
        return session_id != self.spared_id if self.session_id is None else session_id == self.session_id


class RevocationListener:
    """Hears what the scripts announce, on a connection of its own that is made again whenever it breaks.

    `connect` makes a client of the store. `on_revocation` is called with every revocation, `on_gap` each time the
    subscription is (re)established: revocations may have been missed before.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        runner: ScriptRunner,
        *,
        on_revocation: Callable[[Revocation], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._runner = runner
        self._on_revocation = on_revocation
        self._on_gap = on_gap
        self._connected = True
        self._failures = 0

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        return f"<RevocationListener [{self._runner.keys.revocation_channel}] {state}>"

    async def listen(self) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is to be tried again
                if self._connected:
                    _log.warning("ends of sessions are not heard of at once: %s", unavailable_from(error))
                self._connected = False
            wait = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**self._failures)
            self._failures = min(self._failures + 1, 10)
            # Not all processes at once, after a restart of the store.
            await asyncio.sleep(wait * _chance.uniform(0.5, 1.0))

    async def _listen_once(self) -> None:
        client = self._connect()
        try:
            async with client.pubsub() as subscription:
                await subscription.subscribe(self._runner.keys.revocation_channel)
                await self._hear(subscription)
        finally:
            await client.aclose()

    async def _hear(self, subscription: Any) -> None:
        asked = False
        while True:
            message = await subscription.get_message(timeout=_SILENCE_SECONDS)
            if message is None:
                if asked:
                    raise TimeoutError
                await subscription.ping()
                asked = True
                continue
            asked = False
            if message["type"] == "subscribe":
                self._begins()
            elif message["type"] == "message" and (revocation := self._read(message["data"])) is not None:
                self._on_revocation(revocation)

    def _begins(self) -> None:
        if not self._connected:
            _log.info("ends of sessions are heard of again")
        self._connected, self._failures = True, 0
        self._on_gap()

    def _read(self, data: Any) -> Revocation | None:
        """None for what no script of ours says: whoever may publish may say anything."""
        try:
            whom, reason, key = data.split(b" ", 2)
            user = self._runner.keys.user_of(key)
            if user is None:
                return None
            if whom.startswith(b"*"):
                return Revocation(user, None, int(whom[1:]), EndReason(reason.decode()))
            return Revocation(user, int(whom), 0, EndReason(reason.decode()))
        except (AttributeError, ValueError):
            return None
