"""The services that sign-ins work with, and the common part of their outcomes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import msgspec

from gatekeeper.auth.gate import Exemptions, Gate
from gatekeeper.auth.requests import SessionOwner, SignInRequest
from gatekeeper.auth.strays import StrayTokens
from gatekeeper.errors import Reason, StoreUnavailable
from gatekeeper.models import EndReason, Problem
from gatekeeper.sessions.audit import AuditLog
from gatekeeper.sessions.audit_event import Action
from gatekeeper.sessions.events import Actor, Event, EventCounter
from gatekeeper.sessions.login_attempts import LoginAttempts
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.sign_ins import SignInResult, SignIns
from gatekeeper.tokens.token_warnings import TokenWarnings
from gatekeeper.tokens.verifier import Verifier


class SignInServices(msgspec.Struct, frozen=True, kw_only=True):
    """The services that sign-ins work with."""

    gate: Gate
    verifier: Verifier
    strays: StrayTokens
    sign_ins: SignIns
    manager: Manager
    exempt: Exemptions
    events: EventCounter
    audit_log: AuditLog
    attempts: LoginAttempts | None
    failure_statuses: Collection[int]
    warnings: TokenWarnings


def refusal(end_reason: EndReason | None) -> Problem:
    """The problem for a token of an ended session, or of none."""
    reason = end_reason.refusal if end_reason is not None else Reason.SESSION_REVOKED_OR_INVALID
    return Problem(reason=reason, end_reason=end_reason)


def counted(events: EventCounter, signed_in: SignInResult) -> Problem | None:
    """Count the outcome of a sign-in; the problem if its tokens were refused, None if they are live."""
    if signed_in.outcome == "opened":
        events.count(Event.OPENED, "user")
        if signed_in.evicted:
            events.count(Event.EVICTED, "system", signed_in.evicted)
    if signed_in.is_live:
        return None
    if signed_in.outcome == "full":
        events.count(Event.LIMIT_REFUSED, "system")
        return Problem(reason=Reason.SESSION_LIMIT_EXCEEDED)
    if signed_in.outcome == "stale":
        return Problem(reason=Reason.INSUFFICIENT_USER_AUTHENTICATION, max_age=0)
    return refusal(signed_in.end_reason)


async def record(
    services: SignInServices, action: Action, request: SignInRequest, owner: SessionOwner, *, reason: str | None = None
) -> None:
    """Write an event that changes no session to the audit log. Raises `StoreUnavailable`."""
    actor = Actor.of(request.client, owner.user, user_name=request.sent.user_name or "")
    await services.audit_log.record(action, actor, user=owner.user, session_id=owner.session_id, reason=reason)


async def record_failed_login(services: SignInServices, request: SignInRequest, owner: SessionOwner) -> None:
    """Write a failed login to the audit log; without a store the application log alone has it, since the client gets
    nothing either way."""
    with suppress(StoreUnavailable):
        await record(services, Action.LOGIN_FAILED, request, owner)
