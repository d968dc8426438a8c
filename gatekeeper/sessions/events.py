"""What happens to sessions, as counted events, and who acts."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, Protocol, Self

import msgspec

from gatekeeper.models import Client

ActorKind = Literal["user", "admin", "system"]
ACTOR_KINDS: tuple[ActorKind, ...] = ("user", "admin", "system")


class Event(StrEnum):
    """An opening, a refused opening, and each way to end (`models.EndReason`)."""

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


class EventCounter(Protocol):
    """Where events are counted."""

    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None: ...


class Actor(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Who does something to sessions, for the audit trail: as what, which user that is, from which address, in which
    request, and what was typed as a user name. Unknown is empty."""

    kind: ActorKind
    user_id: str = ""
    client_ip: str = ""
    request_id: str = ""
    user_name: str = ""

    @classmethod
    def of(cls, client: Client, user: str | None, *, kind: ActorKind = "user", user_name: str = "") -> Self:
        return cls(
            kind=kind,
            user_id=user or "",
            client_ip=client.ip_address,
            request_id=client.request_id,
            user_name=user_name,
        )

    def packed(self) -> bytes:
        """As the scripts keep it: one argument, opaque to them."""
        return msgspec.json.encode(self)


# Nobody: what comes about by itself, or by a program without a request.
SYSTEM: Final = Actor(kind="system")
