"""Events of sessions, as metrics count them, and the actor of a call, as the audit log names it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, Protocol, Self

import msgspec

from gatekeeper.models import Client

ActorKind = Literal["user", "admin", "system"]
ACTOR_KINDS: tuple[ActorKind, ...] = ("user", "admin", "system")


class Event(StrEnum):
    """An opening, a refused opening, or the end of a session: one for each `models.EndReason`."""

    OPENED = "opened"
    LIMIT_REFUSED = "limit_refused"
    LOGGED_OUT = "logged_out"
    REVOKED_BY_USER = "revoked_by_user"
    REVOKED_BY_ADMIN = "revoked_by_admin"
    DEACTIVATED = "deactivated"
    EVICTED = "evicted"
    IDLE = "idle"
    EXPIRED = "expired"
    REFRESH_REUSED = "refresh_reused"
    REPORTED = "reported"


class EventCounter(Protocol):
    """Counts events. Implemented by `telemetry.metrics.Metrics`."""

    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None: ...


class Actor(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The party that opens or ends sessions, for the audit log: as what kind, as which user, from which address, in
    which request, and under which typed user name. Empty where unknown."""

    kind: ActorKind
    user_id: str = ""
    client_ip: str = ""
    request_id: str = ""
    user_name: str = ""

    @classmethod
    def of(cls, client: Client, user: str | None, *, kind: ActorKind = "user", user_name: str = "") -> Self:
        """The actor behind a request; `user` is None where unknown."""
        return cls(
            kind=kind,
            user_id=user or "",
            client_ip=client.ip_address,
            request_id=client.request_id,
            user_name=user_name,
        )

    def packed(self) -> str:
        """JSON, as the scripts pass it on to the outbox (scripts/audit.lua)."""
        return msgspec.json.encode(self).decode()


# For what happens without a caller, or is done by a program outside of a request.
SYSTEM: Final = Actor(kind="system")
