"""Revocations on their way to every process.

    script ends a session ─ PUBLISH <prefix>ends ─→ RevocationListener (one a process) ─→ OpenStreams.revoke
                                  connection lost ─→ OpenStreams.check_all ─→ streams.lua

The script that ends a session publishes it in the same step (`announce` in common.lua). Pub/sub loses messages, so a
message is a hint that saves time: a process with open streams also asks about their sessions, every few seconds and
whenever the connection was lost (open_streams.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.store.errors import unavailable_from
from gatekeeper.store.subscription import Subscription

_log = logging.getLogger("gatekeeper")

# After this silence the connection is pinged, and has as long again to reply.
_SILENCE_SECONDS: Final = 1.0
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0
_chance: Final = random.Random()  # noqa: S311 - no secret


class Revocation(msgspec.Struct, frozen=True):
    """A published revocation: of one session of `user`, or, where `session_id` is None, of every one but `spared_id`
    (0: of every one)."""

    user: str
    session_id: int | None
    spared_id: int
    reason: EndReason

    def applies_to(self, session_id: int) -> bool:
        return session_id != self.spared_id if self.session_id is None else session_id == self.session_id


class RevocationListener:
    """Receives revocations, on a connection of its own that is made again whenever it breaks.

    `subscribe` opens that connection for a channel. `on_revocation` is called with every revocation, `on_gap` each time
    the subscription is (re)established: revocations may have been missed before.
    """

    def __init__(
        self,
        subscribe: Callable[[str], Awaitable[Subscription]],
        runner: ScriptRunner,
        *,
        on_revocation: Callable[[Revocation], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._subscribe = subscribe
        self._runner = runner
        self._on_revocation = on_revocation
        self._on_gap = on_gap
        self._connected = True
        self._failures = 0

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        return f"<RevocationListener [{self._runner.keys.revocation_channel}] {state}>"

    async def listen(self) -> None:
        """Receives until it is cancelled."""
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - after any fault, connect again
                if self._connected:
                    _log.warning("revocation channel lost: %s", unavailable_from(error))
                self._connected = False
            wait = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**self._failures)
            self._failures = min(self._failures + 1, 10)
            # Random, so that not all processes connect at once after a restart of the store.
            await asyncio.sleep(wait * _chance.uniform(0.5, 1.0))

    async def _listen_once(self) -> None:
        subscription = await self._subscribe(self._runner.keys.revocation_channel)
        try:
            await self._receive(subscription)
        finally:
            subscription.close(ConnectionAbortedError())

    async def _receive(self, subscription: Subscription) -> None:
        pinged = False
        while True:
            event = await subscription.receive(_SILENCE_SECONDS)
            if event is None:
                if pinged:
                    raise TimeoutError
                subscription.ping()
                pinged = True
                continue
            pinged = False
            kind, data = event
            if kind == b"subscribe":
                self._subscribed()
            elif kind == b"message" and (revocation := self._read(data)) is not None:
                self._on_revocation(revocation)

    def _subscribed(self) -> None:
        if not self._connected:
            _log.info("revocation channel restored")
        self._connected, self._failures = True, 0
        self._on_gap()

    def _read(self, data: Any) -> Revocation | None:
        """Reads a message. None for one that is not in the format of `announce`: any client of the store may
        publish."""
        try:
            target, reason, key = data.split(b" ", 2)
            user = self._runner.keys.user_of(key)
            if user is None:
                return None
            if target.startswith(b"*"):
                return Revocation(user, None, int(target[1:]), EndReason(reason.decode()))
            return Revocation(user, int(target), 0, EndReason(reason.decode()))
        except (AttributeError, ValueError):
            return None
