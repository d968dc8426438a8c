"""Gatekeeper inside an application: `GatekeeperMiddleware(app)`, and `current_session(request)` behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatekeeper.web.request import CurrentSession as CurrentSession
from gatekeeper_middleware.asgi import GatekeeperMiddleware as GatekeeperMiddleware

__all__ = ["CurrentSession", "GatekeeperMiddleware", "current_session"]


def current_session(request: Any) -> CurrentSession | None:
    """The session of a request that the gate admitted; None on a public path without a good token.

    Takes a Starlette or FastAPI `Request` or `WebSocket`, or an ASGI scope. Raises RuntimeError where
    `GatekeeperMiddleware` does not stand in front: no session and no gate must not look alike.
    """
    scope: Mapping[str, Any] = request if isinstance(request, Mapping) and "type" in request else request.scope
    if "gatekeeper" not in scope:
        raise RuntimeError("GatekeeperMiddleware does not stand in front of this application")
    session: CurrentSession | None = scope["gatekeeper"]
    return session
