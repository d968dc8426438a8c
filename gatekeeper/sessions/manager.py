"""What a person may do to sessions: their own, and an administrator to everybody's.

Ownership is not checked here, it is built in: every method reaches into the sessions of one named user, so an id of
somebody else's is simply not there.
"""

from __future__ import annotations

import msgspec

from gatekeeper.models import Claims, Client, EndReason, Session
from gatekeeper.sessions.audit import Action, AuditLog
from gatekeeper.sessions.events import SYSTEM, Actor, ActorKind, Event, EventCounter
from gatekeeper.sessions.open_streams import expect_own_end
from gatekeeper.sessions.store import SessionStore


class Manager:
    """Lists and ends sessions. Every method raises `StoreUnavailable`; an end returns once the store has it. Who acts
    is told by `by`, for the audit trail."""

    def __init__(self, store: SessionStore, events: EventCounter, actor: Actor = SYSTEM) -> None:
        self._store = store
        self._events = events
        self._actor = actor

    @property
    def audit_log(self) -> AuditLog:
        """What is on record."""
        return self._store.audit_log

    def by(self, actor: Actor) -> Manager:
        """The same, for what one request does."""
        return Manager(self._store, self._events, actor)

    def _as(self, kind: ActorKind) -> Actor:
        return msgspec.structs.replace(self._actor, kind=kind)

    async def record_admin_action(self, operation: str, user: str | None) -> None:
        """Puts on record that an administrator is about to look at, or end, the sessions of `user`, or of all."""
        await self._store.audit_log.record(Action.ADMIN_ACTION, self._as("admin"), user=user, reason=operation)

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        """A user's sessions, newest activity first; empty for an unknown user."""
        return await self._store.sessions(user, include_inactive=include_inactive)

    async def find(self, user: str, name: str, *, touch: bool = False) -> Session | None:
        """The session, live or over, that the reference of its tokens names, or the `jti` of the newest one. With
        `touch` the activity of a live one moves. None: there is none, or it is forgotten."""
        return await self._store.find(user, name, touch=touch)

    async def revoke(self, user: str, session_id: int | None, *, by_admin: bool = False) -> Session | None:
        """Ends one session and takes it out of every list. None: no such session (any more)."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        return await self._end(user, session_id, reason, "admin" if by_admin else "user")

    async def deactivate(self, user: str, session_id: int | None) -> Session | None:
        """Ends one session and keeps it listed as inactive. None: no such live session."""
        return await self._end(user, session_id, EndReason.DEACTIVATED, "user")

    async def _end(self, user: str, session_id: int | None, reason: EndReason, kind: ActorKind) -> Session | None:
        if session_id is None:
            return None
        expect_own_end(user, session_id)
        ended = await self._store.end(user, session_id, reason, actor=self._as(kind))
        if ended is not None:
            self._events.count(Event(reason.value), kind)
        return ended

    async def revoke_all(self, user: str, *, spare: int | None = None, by_admin: bool = False) -> int:
        """Ends every session but `spare`. How many live ones that were."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        kind: ActorKind = "admin" if by_admin else "user"
        expect_own_end(user, spare=spare)
        count = await self._store.end_all(user, reason, spare=spare, actor=self._as(kind))
        self._events.count(Event(reason.value), kind, count)
        return count

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        """Ends the session that a token names; its id. It is no fault if that was over already (None)."""
        expect_own_end(claims.user)
        ended = await self._store.log_out(claims, client)
        if ended is not None:
            self._events.count(Event.LOGGED_OUT, "user")
        return ended

    async def log_out_session(self, user: str, session_id: int) -> Session | None:
        """The same, for a session that something else than an access token names."""
        return await self._end(user, session_id, EndReason.LOGGED_OUT, "user")

    async def log_out_unseen(self, user: str, reference: str, client: Client) -> None:
        """The same for what no session has: its tokens open none from now on."""
        await self._store.log_out_unseen(user, reference, client)

    async def log_out_everywhere(self, user: str) -> int:
        """Ends every session of a user, as their identity provider says. How many live ones that were."""
        expect_own_end(user)
        count = await self._store.end_all(user, EndReason.LOGGED_OUT, actor=self._as("system"))
        self._events.count(Event.LOGGED_OUT, "system", count)
        return count

    async def log_out_sid(self, user: str, sid: str, *, tokens_expire_at: float) -> int:
        """Ends every session of one sign-in at an identity provider; tokens of it that were never seen are over too."""
        expect_own_end(user)
        actor = self._as("system")
        count = await self._store.end_sid(user, sid, tokens_expire_at=tokens_expire_at, actor=actor)
        self._events.count(Event.LOGGED_OUT, "system", count)
        return count

    async def enforce_limit(self, user: str) -> int:
        """Ends what a lowered device limit has left over; how many those were."""
        count = await self._store.enforce_limit(user, actor=self._as("system"))
        self._events.count(Event.EVICTED, "system", count)
        return count

    async def clean_up(self) -> int:
        """Takes the idle and the expired sessions of all users out of the lists now; how many those were."""
        return await self._store.clean_up()
