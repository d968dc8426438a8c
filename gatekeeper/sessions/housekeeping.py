"""What each process does beside the requests: ends what is due, and carries over what others left behind.

Records leave the store by themselves. What would stay are entries of the indexes; they are taken away here, and what
became idle or expired is told to the audit trail, whether or not anybody asks for it again.
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

# So many users a step are looked at, then others have their turn.
_USERS_A_STEP: Final = 100
# When there is nothing to do; several processes are not to do it at the same moment.
_REST_SECONDS: Final = (5.0, 15.0)
_chance: Final = random.Random()  # noqa: S311 - no secret
_BUSY_SECONDS: Final = 0.1


class Housekeeping:
    """Runs steps until it is cancelled."""

    def __init__(self, store: SessionStore, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    def __repr__(self) -> str:
        return f"<Housekeeping {self._outbox!r}>"

    async def run(self) -> None:
        """A step now and then; while there is much to do, ten a second. Beside it the outbox."""
        async with asyncio.TaskGroup() as together:
            together.create_task(self._outbox.run())
            together.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        busy = False
        while True:
            await asyncio.sleep(_BUSY_SECONDS if busy else _chance.uniform(*_REST_SECONDS))
            try:
                busy = await self.step()
            except StoreUnavailable:
                # The probe tells.
                busy = False
            except Exception:  # noqa: BLE001 - without it, nobody keeps house any more
                _log.exception("internal error")
                busy = False

    async def step(self) -> bool:
        """One bounded piece of it. Whether there is more to do. Raises `StoreUnavailable`."""
        swept = await self._outbox.sweep()
        return await self._store.settle_due(_USERS_A_STEP) >= _USERS_A_STEP or swept >= _USERS_A_STEP

    async def aclose(self) -> None:
        """The last of what this process itself has to carry over."""
        await self._outbox.flush()
