"""Recognition of primaries: the first connection to one that this process has not met repeats recent writes there.

A failover may lose writes that were acknowledged. The new primary is asked to do them once more before any other call
is sent to it, so no call finds it without them.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from hiredis import ReplyError

from gatekeeper.store.command import Command, Script, server_command
from gatekeeper.store.connection import Server, StoreConnection, ask
from gatekeeper.store.errors import kind_of_reply

_BATCH_SIZE: Final = 200
_MOST_SERVERS: Final = 1_000
_IDENTITY: Final = re.compile(rb"^(?:run_id|master_replid):(\w+)", re.MULTILINE)
# Replies to a write that this server does not have to do: it serves other keys, or refuses this one alone.
_NOT_HERE: Final = frozenset({"refused", "denied", "cluster_down"})


class RecentWrites(Protocol):
    """Holds the writes to be repeated. Implemented by `sessions.recent_revocations.RecentRevocations`."""

    def writes(self) -> Sequence[Callable[[], Command]]:
        """Return what makes the commands, scripts whose reply ends with 1 where the server lacked the write."""

    def written(self, lacking: int) -> None:
        """Take note that all of them were sent to a primary, which lacked so many."""


class _Greeting(NamedTuple):
    """The writes that are still to be repeated at a primary."""

    identity: bytes
    left: deque[Callable[[], Command]]


class Primaries:
    """The primaries that this process has met, by their addresses.

    A primary is known by the run of its process and by the history of its data: the first changes when the server is
    restarted, the second when a replica becomes the primary.
    """

    def __init__(self) -> None:
        self.recent: RecentWrites | None = None
        self._met: dict[Server, bytes] = {}
        self._greetings: dict[Server, _Greeting] = {}
        self._locks: dict[Server, asyncio.Lock] = {}

    def __repr__(self) -> str:
        return f"<Primaries [{len(self._met)} met]>"

    async def greet(self, server: Server, connection: StoreConnection, deadline: float) -> None:
        """Repeat recent writes over a new connection, unless this primary was met before. Raises what the connection
        raises; the next connection then goes on with the rest."""
        if self.recent is None:
            return
        if len(self._met) >= _MOST_SERVERS:
            self._met.clear()
        # Of several connections that are opened at once, none may be used before the first has done it.
        async with self._locks.setdefault(server, asyncio.Lock()):
            identity = await _identity_of(connection, deadline)
            if identity and self._met.get(server) == identity:
                return
            await self._repeat(self.recent, server, identity, connection, deadline)
            self._met[server] = identity

    async def _repeat(
        self, recent: RecentWrites, server: Server, identity: bytes, connection: StoreConnection, deadline: float
    ) -> None:
        greeting = self._greetings.get(server)
        if greeting is None or not identity or greeting.identity != identity:
            greeting = self._greetings[server] = _Greeting(identity, deque(recent.writes()))
        if not greeting.left:
            return
        lacking = 0
        try:
            while greeting.left:
                commands = [make() for make in islice(greeting.left, _BATCH_SIZE)]
                lacking += await _send(connection, commands, deadline)
                for _ in commands:
                    greeting.left.popleft()
        finally:
            recent.written(lacking)


async def _identity_of(connection: StoreConnection, deadline: float) -> bytes:
    """Tell this primary from others; empty where the server does not say."""
    sections = [server_command("INFO", section) for section in ("server", "replication")]
    replies = await ask(connection, sections, deadline)
    for reply in replies:
        if isinstance(reply, BaseException) and not isinstance(reply, ReplyError):
            raise reply
    described = b"\n".join(reply for reply in replies if isinstance(reply, bytes))
    found = _IDENTITY.findall(described)
    return b" ".join(found) if len(found) == len(sections) else b""


async def _send(connection: StoreConnection, commands: Sequence[Command], deadline: float) -> int:
    """Send scripts. Return how many of the writes the server lacked."""
    sent: set[Script | None] = set()
    with_sources: list[Command] = []
    for command in commands:
        # A server that has just become the primary does not know the scripts.
        with_sources.append(command if command.script in sent else command.with_source())
        sent.add(command.script)
    lacking = 0
    for command, reply in zip(commands, await ask(connection, with_sources, deadline), strict=True):
        if isinstance(reply, ReplyError) and kind_of_reply(str(reply)) in _NOT_HERE:
            continue
        if isinstance(reply, BaseException):
            raise reply
        lacking += _lacked(command, reply)
    return lacking


def _lacked(command: Command, reply: Any) -> bool:
    if not isinstance(reply, list) or not reply or reply[0] != command.key:
        raise ConnectionError("a reply to another call")
    return bool(reply[-1] == 1)
