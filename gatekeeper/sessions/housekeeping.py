"""The background task of each process: ends due sessions, delivers outbox entries that others left behind, and removes
what is too old from the audit log.

Records expire by themselves, but entries of the indexes would stay: they are removed here. Sessions that became idle or
expired are recorded in the audit log even if no request ever names them again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.outbox import Outbox
from gatekeeper.sessions.store import SessionStore

_log = logging.getLogger("gatekeeper")

# Users in one step; then other tasks have their turn.
_USERS_A_STEP: Final = 100
# The pause while there is nothing to do, random so that processes do not work at the same moment.
_REST_SECONDS: Final = (5.0, 15.0)
_chance: Final = random.Random()  # noqa: S311 - no secret
_BUSY_SECONDS: Final = 0.1


class Housekeeping:
    """Runs the steps of the background task."""

    def __init__(self, store: SessionStore, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    def __repr__(self) -> str:
        return f"<Housekeeping {self._outbox!r}>"

    async def run(self) -> None:
        """Runs a step every 5 to 15 seconds, ten a second while there is much to do, and the outbox beside it. Ends
        only by cancellation."""
        async with asyncio.TaskGroup() as together:
            together.create_task(self._outbox.run())
            together.create_task(self._run_steps())

    async def _run_steps(self) -> None:
        busy = False
        while True:
            await asyncio.sleep(_BUSY_SECONDS if busy else _chance.uniform(*_REST_SECONDS))
            try:
                busy = await self.step()
            except StoreUnavailable:
                # The breaker reports that.
                busy = False
            except Exception:  # noqa: BLE001 - the task must outlive any fault
                _log.exception("internal error")
                busy = False

    async def step(self) -> bool:
        """Does one bounded piece of work. Returns True while there is more to do. Raises `StoreUnavailable`."""
        swept = await self._outbox.sweep()
        settled = await self._store.settle_due(_USERS_A_STEP)
        # Not while the clocks disagree, which the step before reports.
        await self._outbox.audit_log.trim()
        return settled >= _USERS_A_STEP or swept >= _USERS_A_STEP

    async def aclose(self) -> None:
        """Delivers the last outbox entries of this process."""
        await self._outbox.flush()
