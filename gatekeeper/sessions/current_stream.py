"""The stream of the request that is being served, which must not be cut where the request ends its own session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from gatekeeper.models import EndReason


class OpenStream(Protocol):
    """A request in progress, implemented by the host that forwards it. `moved_at` is when bytes last moved, by
    `time.monotonic`; `ends_own_session` says that the request itself ends its session, so its response is not cut."""

    session_id: int
    moved_at: float
    ends_own_session: bool

    def end(self, reason: EndReason) -> None:
        """Cuts the stream, because its session has ended. May be called more than once; must not raise or block."""


# The stream of the request that the current task or thread serves, and its user.
_current: ContextVar[tuple[str, OpenStream] | None] = ContextVar("_current", default=None)


@contextmanager
def serving(user: str, stream: OpenStream) -> Iterator[None]:
    """Makes `stream` the request that the block serves: ending its session there does not cut its response."""
    token = _current.set((user, stream))
    try:
        yield
    finally:
        _current.reset(token)


def expect_own_end(user: str, session_id: int | None = None, *, spare: int | None = None) -> None:
    """Call it before one session of `user`, or every one but `spare`, is ended. Where that is the session of the
    request being served, the response to it is not cut."""
    found = _current.get()
    if found is None or found[0] != user:
        return
    own = found[1].session_id
    if own == session_id or (session_id is None and own != spare):
        found[1].ends_own_session = True
