"""The route to the primary that the sentinels name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import Address
from gatekeeper.store.command import server_command
from gatekeeper.store.connection import Server, StoreConnection, connect
from gatekeeper.store.queue import CommandQueue
from gatekeeper.store.route import QueueFactory, RefreshedRoute, ignored

_log = logging.getLogger("gatekeeper")


class _Election(NamedTuple):
    """An election as a sentinel reports it: its number, which only grows (the configuration epoch), and its winner."""

    epoch: int
    primary: Server


class SentinelRoute(RefreshedRoute):
    """The route to the primary that the sentinels name. Where they differ, the one of the latest election counts; one
    that is older than an election which was followed before never does."""

    # A primary that was replaced while it was cut off still replies (docs/attacks.md, R12).
    refresh_seconds = 0.5

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        # The newest election that was followed, and the sentinels that did not reply in time when they were asked last.
        self._elected: _Election | None = None
        self._silent: set[CommandQueue] = set()
        self._knows_newer = False
        self._sentinel_options = structs.replace(
            address.options, database=0, must_be_primary=False, password_is_optional=True
        )
        self._sentinels = [
            make_queue(server, partial(self._connect_sentinel, server), on_disconnect=ignored, on_outcome=ignored)
            for server in address.servers
        ]

    def _server_of(self, key: bytes) -> Server:
        # Stands for the primary, at whatever address it is.
        return Server(host=self._address.service)

    async def _connect_sentinel(
        self, server: Server, make: Callable[[], StoreConnection], deadline: float
    ) -> StoreConnection:
        return await connect(server, self._sentinel_options, make, deadline)

    async def _connect(self, server: Server, make: Callable[[], StoreConnection], deadline: float) -> StoreConnection:
        await self._refresh()
        assert self._elected is not None  # noqa: S101 - for the type checker
        return await super()._connect(self._elected.primary, make, deadline)

    async def _elections(self) -> list[_Election]:
        """Ask all sentinels at once. Wait half a second at most, and not for those that were silent the last time once
        more than half have replied. Raises `StoreUnavailable` where none names a primary."""
        asked = {asyncio.ensure_future(self._election(queue)): queue for queue in self._sentinels}
        found: list[_Election] = []
        fault = StoreUnavailable("session store failed: no sentinel names a primary", kind="connection")
        waiting = set(asked)
        try:
            while waiting:
                if len(found) > len(asked) // 2 and all(asked[each] in self._silent for each in waiting):
                    break
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    try:
                        found.append(each.result())
                    except StoreUnavailable as error:
                        self._silent.add(asked[each])
                        fault = StoreUnavailable(f"{error}: no sentinel names a primary", kind="connection")
                    except (ValueError, KeyError, AttributeError):
                        pass
                    else:
                        self._silent.discard(asked[each])
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if not found:
            raise fault
        return found

    async def _election(self, sentinel: CommandQueue) -> _Election:
        """The newest election that a sentinel knows. Raises `StoreUnavailable`, `ValueError`, `KeyError` or
        `AttributeError`."""
        service = self._address.service
        described = await self._query(sentinel, server_command("SENTINEL", "MASTER", service))
        election, in_progress = _parse_primary(described)
        if in_progress:
            # Who leads a failover gives it the number of the new election before the address that was elected.
            command = server_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            address = await self._query(sentinel, command)
            if isinstance(address, list) and len(address) == 2 and all(isinstance(each, bytes) for each in address):
                return election._replace(primary=Server(address[0].decode(), int(address[1])))
        return election

    async def _refresh(self) -> None:
        elections = await self._elections()
        newest = max(each.epoch for each in elections)
        winners = [each for each in elections if each.epoch == newest]
        followed = self._elected
        if followed is not None and (newest < followed.epoch or followed in winners):
            self._say_if_older(newest < followed.epoch, newest)
            return
        self._say_if_older(False, newest)
        self._elected = winners[0]
        if followed is not None:
            for queue in self.queues():
                queue.disconnect(ConnectionAbortedError())

    def _say_if_older(self, is_older: bool, newest: int) -> None:
        """Log once that every sentinel that replies knows older elections only."""
        if is_older and not self._knows_newer and self._elected is not None:
            _log.warning(
                "session store keeps its primary %s: the sentinels know election %d at most, and %d was followed",
                self._elected.primary,
                newest,
                self._elected.epoch,
            )
        self._knows_newer = is_older

    async def aclose(self) -> None:
        await super().aclose()
        for queue in self._sentinels:
            await queue.aclose()


def _parse_primary(reply: Any) -> tuple[_Election, bool]:
    """The election in a reply to SENTINEL MASTER, and whether this sentinel leads a failover. Raises `ValueError`,
    `KeyError` or `AttributeError`."""
    if not isinstance(reply, list):
        raise ValueError("no primary")  # noqa: TRY004 - the caller handles any malformed reply alike
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    election = _Election(int(fields[b"config-epoch"]), Server(fields[b"ip"].decode(), int(fields[b"port"])))
    return election, b"failover_in_progress" in fields.get(b"flags", b"")
