"""Operations on sessions, for users on their own and for administrators on those of all users.

Ownership needs no check: every method works on the sessions of one named user, so the id of another user's session is
not found.
"""

from __future__ import annotations

import msgspec

from gatekeeper.models import Claims, Client, EndReason, Session
from gatekeeper.sessions.audit import AuditLog
from gatekeeper.sessions.audit_event import Action
from gatekeeper.sessions.current_stream import expect_own_end
from gatekeeper.sessions.events import SYSTEM, Actor, ActorKind, Event, EventCounter
from gatekeeper.sessions.store import SessionStore


class Manager:
    """Lists and ends sessions. Every method that is awaited raises `StoreUnavailable`; one that ends sessions returns
    once the store has done so. `by` sets the actor for the audit log."""

    def __init__(self, store: SessionStore, events: EventCounter, actor: Actor = SYSTEM) -> None:
        self._store = store
        self._events = events
        self._actor = actor

    @property
    def audit_log(self) -> AuditLog:
        """The audit log of the store."""
        return self._store.audit_log

    def by(self, actor: Actor) -> Manager:
        """Returns a manager that acts as `actor`, for one request."""
        return Manager(self._store, self._events, actor)

    def _as(self, kind: ActorKind) -> Actor:
        return msgspec.structs.replace(self._actor, kind=kind)

    async def record_admin_action(self, operation: str, user: str | None) -> None:
        """Records that an administrator is about to read or end the sessions of `user`, or of all users (None)."""
        await self._store.audit_log.record(Action.ADMIN_ACTION, self._as("admin"), user=user, reason=operation)

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        """Lists the sessions of a user, newest activity first; empty for an unknown user."""
        return await self._store.sessions(user, include_inactive=include_inactive)

    async def history(self, user: str, *, include_ended: bool) -> list[Session]:
        """Lists the live sessions of a user, and those that have ended and are still kept, hidden ones too."""
        return await self._store.sessions(user, include_inactive=include_ended, include_hidden=include_ended)

    async def get(self, user: str, session_id: int | None) -> Session | None:
        """Finds a session by its id, live or ended. None: there is none (any more)."""
        return None if session_id is None else await self._store.get(user, session_id)

    async def rename(self, user: str, session_id: int | None, name: str) -> Session | None:
        """Gives a live session a name, '' for none. None: no such live session."""
        return None if session_id is None else await self._store.rename(user, session_id, name)

    async def knows(self, user: str) -> bool:
        """Tells whether there is any session of a user, ended and hidden ones too."""
        return await self._store.knows(user)

    async def find(self, user: str, name: str, *, touch: bool = False) -> Session | None:
        """Finds the session, live or ended, by the reference of its tokens or the `jti` of the newest one. `touch`
        moves the last activity of a live one. None: there is none (any more)."""
        return await self._store.find(user, name, touch=touch)

    async def revoke(
        self, user: str, session_id: int | None, *, by_admin: bool = False, only_live: bool = False
    ) -> Session | None:
        """Ends one session and hides it from the lists of the dialects. None: no such session (any more), or with
        `only_live` one that had ended and was listed as inactive."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        return await self._end(user, session_id, reason, "admin" if by_admin else "user", only_live=only_live)

    async def report(self, user: str, session_id: int | None) -> Session | None:
        """Ends one session that its user does not know, and records its device and address. None: no such live
        session."""
        session = await self.get(user, session_id)
        if session is None:
            return None
        note = f"{session.device.name}, {session.ip_address}"
        return await self._end(user, session_id, EndReason.REPORTED, "user", only_live=True, note=note)

    async def deactivate(self, user: str, session_id: int | None) -> Session | None:
        """Ends one session and keeps it listed as inactive. None: no such live session."""
        return await self._end(user, session_id, EndReason.DEACTIVATED, "user")

    async def _end(
        self,
        user: str,
        session_id: int | None,
        reason: EndReason,
        kind: ActorKind,
        *,
        only_live: bool = False,
        note: str = "",
    ) -> Session | None:
        if session_id is None:
            return None
        expect_own_end(user, session_id)
        ended = await self._store.end(user, session_id, reason, actor=self._as(kind), only_live=only_live, note=note)
        if ended is not None:
            self._events.count(Event(reason.value), kind)
        return ended

    async def revoke_all(self, user: str, *, spare: int | None = None, by_admin: bool = False) -> int:
        """Ends every session but `spare`. Returns how many live ones ended."""
        reason = EndReason.REVOKED_BY_ADMIN if by_admin else EndReason.REVOKED_BY_USER
        kind: ActorKind = "admin" if by_admin else "user"
        expect_own_end(user, spare=spare)
        count = await self._store.end_all(user, reason, spare=spare, actor=self._as(kind))
        self._events.count(Event(reason.value), kind, count)
        return count

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        """Ends the session that an access token names. Returns its id, or None where it had ended before."""
        expect_own_end(claims.user)
        ended = await self._store.log_out(claims, client)
        if ended is not None:
            self._events.count(Event.LOGGED_OUT, "user")
        return ended

    async def log_out_session(self, user: str, session_id: int) -> Session | None:
        """Ends a session by its id, as a logout."""
        return await self._end(user, session_id, EndReason.LOGGED_OUT, "user")

    async def log_out_unseen(self, user: str, reference: str, client: Client) -> None:
        """Makes sure that tokens with a reference which no session has open none from now on."""
        await self._store.log_out_unseen(user, reference, client)

    async def log_out_everywhere(self, user: str) -> int:
        """Ends every session of a user, as the identity provider reports. Returns how many live ones ended."""
        expect_own_end(user)
        count = await self._store.end_all(user, EndReason.LOGGED_OUT, actor=self._as("system"))
        self._events.count(Event.LOGGED_OUT, "system", count)
        return count

    async def log_out_sid(self, user: str, sid: str, *, tokens_expire_at: float, issued_at: float | None = None) -> int:
        """Ends every session of one sign-in at an identity provider, also for tokens that were never seen. Returns how
        many live ones ended."""
        expect_own_end(user)
        actor = self._as("system")
        count = await self._store.end_sid(
            user, sid, tokens_expire_at=tokens_expire_at, issued_at=issued_at, actor=actor
        )
        self._events.count(Event.LOGGED_OUT, "system", count)
        return count

    async def enforce_limit(self, user: str) -> int:
        """Ends sessions beyond a lowered device limit. Returns how many."""
        count = await self._store.enforce_limit(user, actor=self._as("system"))
        self._events.count(Event.EVICTED, "system", count)
        return count

    async def clean_up(self) -> int:
        """Hides the idle and expired sessions of all users from every list now. Returns how many."""
        return await self._store.clean_up()
