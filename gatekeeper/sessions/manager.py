"""What a person may do to sessions: their own, and an administrator to everybody's.

Ownership is not checked here, it is built in: every method reaches into the sessions of one named user, so an id of
somebody else's is simply not there.
"""

from __future__ import annotations

from gatekeeper.models import Claims, Client, EndReason, Session
from gatekeeper.sessions.events import Actor, Event, Events
from gatekeeper.sessions.store import SessionStore


class Manager:
    """Lists and ends sessions. Every method raises `StoreUnavailable`; an end returns once the store has it."""

    def __init__(self, store: SessionStore, events: Events) -> None:
        self._store = store
        self._events = events

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        """A user's sessions, newest activity first; empty for an unknown user."""
        return await self._store.sessions(user, include_inactive=include_inactive)

    async def revoke(self, user: str, session_id: int | None, *, by_admin: bool = False) -> Session | None:
        """Ends one session and takes it out of every list. None: no such session (any more)."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        return await self._end(user, session_id, reason, "admin" if by_admin else "user")

    async def deactivate(self, user: str, session_id: int | None) -> Session | None:
        """Ends one session and keeps it listed as inactive. None: no such live session."""
        return await self._end(user, session_id, EndReason.DEACTIVATED, "user")

    async def _end(self, user: str, session_id: int | None, reason: EndReason, actor: Actor) -> Session | None:
        if session_id is None:
            return None
        ended = await self._store.end(user, session_id, reason)
        if ended is not None:
            self._events.count(Event(reason.value), actor)
        return ended

    async def revoke_all(self, user: str, *, spare: int | None = None, by_admin: bool = False) -> int:
        """Ends every session but `spare`. How many live ones that were."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        count = await self._store.end_all(user, reason, spare=spare)
        self._events.count(Event(reason.value), "admin" if by_admin else "user", count)
        return count

    async def log_out(self, claims: Claims, client: Client) -> None:
        """Ends the session that a token names. It is no fault if that was over already."""
        if await self._store.log_out(claims, client) is not None:
            self._events.count(Event.LOGGED_OUT, "user")

    async def clean_up(self) -> int:
        """Takes the idle and the expired sessions of all users out of the lists now; how many those were."""
        return await self._store.clean_up()
