"""Gatekeeper inside an application: `GatekeeperMiddleware(app)`, and `current_session(request)` behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatekeeper.web.request import CurrentSession as CurrentSession
from gatekeeper_middleware.asgi import GatekeeperMiddleware as GatekeeperMiddleware

__all__ = ["CurrentSession", "GatekeeperMiddleware", "current_session"]


def current_session(request: Any) -> CurrentSession | None:
    """Return the session of an admitted request; None on a public path without a valid token.

    Takes a Starlette or FastAPI `Request` or `WebSocket`, or an ASGI scope. Raises RuntimeError if the application is
    not behind `GatekeeperMiddleware`: a missing gate must not look like a missing session.
    """
    scope: Mapping[str, Any] = request if isinstance(request, Mapping) and "type" in request else request.scope
    if "gatekeeper" not in scope:
        raise RuntimeError("GatekeeperMiddleware does not stand in front of this application")
    session: CurrentSession | None = scope["gatekeeper"]
    return session
