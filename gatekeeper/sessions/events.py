"""What happens to sessions, as counted events."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Protocol

Actor = Literal["user", "admin", "system"]
ACTORS: tuple[Actor, ...] = ("user", "admin", "system")


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


class Events(Protocol):
    """Where events are counted."""

    def count(self, event: Event, actor: Actor, number: int = 1) -> None: ...
