"""Sessions of one user: listed, found, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from gatekeeper.models import Session
from gatekeeper.sessions.device import prepare
from gatekeeper.sessions.keys import references
from gatekeeper.sessions.record import session_of
from gatekeeper.sessions.scripts import MANAGE, load
from gatekeeper.store.command import Script

LIST: Final = load(*MANAGE, "list")
FIND: Final = load(*MANAGE, "find")
RENAME: Final = load(*MANAGE, "rename")

T = TypeVar("T")


class Runner(Protocol):
    """The methods of `ScriptRunner` that lists call. Each raises `StoreUnavailable`."""

    async def run(
        self, script: Script, user: str, read: Callable[[list[Any]], T], arguments: Mapping[str, Any] | None = None
    ) -> T: ...

    async def has_records(self, user: str) -> bool: ...


class Lists:
    """Reads sessions for their users and for administrators. Every method raises `StoreUnavailable`."""

    def __init__(self, runner: Runner) -> None:
        self._reader = runner

    async def sessions(
        self, user: str, *, include_inactive: bool = False, include_hidden: bool = False
    ) -> list[Session]:
        """Lists the live sessions, newest activity first, at most 1,000; with `include_inactive` also the ended ones
        that are not hidden, and with `include_hidden` those too."""

        def read(reply: list[Any]) -> list[Session]:
            return [session_of(user, int(row), int(last), *packed) for row, last, *packed in reply[1:]]

        arguments = {"include_inactive": include_inactive, "include_hidden": include_hidden}
        await prepare()
        return await self._reader.run(LIST, user, read, arguments)

    async def get(self, user: str, session_id: int) -> Session | None:
        """Finds a session by its id, live or ended."""
        await prepare()
        return await self._reader.run(FIND, user, partial(_found, user), {"id": str(session_id)})

    async def rename(self, user: str, session_id: int, name: str) -> Session | None:
        """Gives a live session a name, '' for none. Returns None where there is no such live session."""

        def read(reply: list[Any]) -> Session | None:
            return None if len(reply) == 1 else session_of(user, session_id, int(reply[1]), *reply[2:])

        await prepare()
        return await self._reader.run(RENAME, user, read, {"id": str(session_id), "name": name})

    async def knows(self, user: str) -> bool:
        """Tells whether there is any session of a user, ended and hidden ones too."""
        return await self._reader.has_records(user)

    async def find(self, user: str, name: str, *, touch: bool = False) -> Session | None:
        """Finds the session, live or ended, whose tokens have the reference `name`, or the newest of which has that
        `jti`. `touch` moves the last activity of a live one."""
        names = references(name)
        if not names:
            return None
        await prepare()
        for each in names:
            arguments = {"name": each, "touch": touch}
            if (found := await self._reader.run(FIND, user, partial(_found, user), arguments)) is not None:
                return found
        return None


def _found(user: str, reply: list[Any]) -> Session | None:
    if len(reply) == 1:
        return None
    _, session_id, last_activity, *packed = reply
    return session_of(user, int(session_id), int(last_activity), *packed)
