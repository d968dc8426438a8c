"""The rules of sessions, as the Gatekeeper that started last has written them into the store.

Scripts judge by the rules of their caller. So a command with other settings than the server's would end sessions that
live: it takes the rules from here. And a second Gatekeeper with other settings is noticed (attacks.md, C09).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.keys import Rules
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.epoch import Epoch

_log = logging.getLogger("gatekeeper")

_LOOK_SECONDS: Final = 60.0
_VARIABLES: Final = {
    "session_seconds": "GATEKEEPER_SESSION_TTL",
    "idle_seconds": "GATEKEEPER_IDLE_TIMEOUT",
    "ended_seconds": "GATEKEEPER_ENDED_SESSION_TTL",
    "device_limit": "GATEKEEPER_DEVICE_LIMIT",
    "policy": "GATEKEEPER_DEVICE_LIMIT_POLICY",
    "adopt_unknown": "GATEKEEPER_UNKNOWN_SESSION",
    "leeway_seconds": "GATEKEEPER_JWT_LEEWAY",
}


class SharedRules:
    """The stored rules beside those of this process. Every method that is awaited raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, epoch: Epoch, *, key_prefix: str, rules: Rules) -> None:
        self._redis = redis
        self._epoch = epoch
        self._key = f"{key_prefix}rules".encode()
        self._rules = rules

    def __repr__(self) -> str:
        return f"<SharedRules {self._rules!r}>"

    async def read(self) -> Rules | None:
        """The stored rules; None where no Gatekeeper has written any, or what is there cannot be read."""
        # Raises for a store of another format.
        await self._epoch.beat()
        packed = await self._redis.call(command("GET", self._key))
        try:
            return msgspec.json.decode(packed, type=Rules) if isinstance(packed, bytes) else None
        except (msgspec.DecodeError, ValueError):
            return None

    async def differences(self) -> list[str]:
        """Compares the stored rules with those of this process, by variable. Empty where none are stored."""
        return self.between(await self.read())

    def between(self, found: Rules | None) -> list[str]:
        """Compares `found` with the rules of this process, by variable."""
        return [
            f"{variable} is {_shown(ours)} here and {_shown(theirs)} there"
            for field, variable in _VARIABLES.items()
            if found is not None and (ours := getattr(self._rules, field)) != (theirs := getattr(found, field))
        ]

    async def watch(self) -> None:
        """Writes the rules of this process, and logs those of another one that starts later. Ends only by
        cancellation."""
        is_written, reported = False, self._rules
        while True:
            try:
                found = await self.read()
                differences = "; ".join(self.between(found))
                if not is_written or found is None:
                    if differences:
                        _log.info("session store has the rules of other settings, and gets mine: %s", differences)
                    await self._redis.call(command("SET", self._key, msgspec.json.encode(self._rules)))
                    is_written = True
                elif differences and found != reported:
                    _log.warning(
                        "session store is shared by a Gatekeeper with other settings, and each ends sessions by its "
                        "own: %s",
                        differences,
                    )
                    reported = found
            except StoreUnavailable:
                pass  # the breaker reports that
            await asyncio.sleep(_LOOK_SECONDS)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "adopt" if value else "reject"
    return "off" if value is None else f"{value:g}s" if isinstance(value, float) else str(value)
