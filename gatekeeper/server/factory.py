"""The protocol class of one listener: the connection of a client, with the callbacks and limits of that listener."""

from __future__ import annotations

from collections.abc import Callable

from gatekeeper.http.request_head import Limits
from gatekeeper.server.exchange import Exchange
from gatekeeper.server.protocol import FastPath, HttpServerProtocol, OnClientLeft
from gatekeeper.server.rejection import RenderError
from gatekeeper.server.responders import DirectResponders


def _nothing(*_: object) -> None:
    """Do nothing: the default callback."""


def no_fast_path(_: Exchange) -> bool:
    """Leave every request to the application."""
    return False


def http_protocol(
    limits: Limits,
    render_error: RenderError,
    *,
    on_overload: Callable[[], None] = _nothing,
    fast_path: FastPath = no_fast_path,
    on_client_left: OnClientLeft = _nothing,
) -> type[HttpServerProtocol]:
    """Return the protocol class for `uvicorn.Config(http=…)`.

    `render_error` writes the responses to rejected requests. `on_overload` is called for each connection over the
    limit, which is reset at once. `fast_path` is called first with every request, whose body may yet arrive: it
    returns True if it responds itself (`Exchange.attach`), False to leave the request to the application.
    `on_client_left` is called with the task of an application whose client has disconnected.
    """

    class ConfiguredHttpProtocol(HttpServerProtocol):
        __slots__ = ()
        responders = DirectResponders()
        _limits = limits
        idle_seconds = limits.keepalive_timeout
        _render_error = staticmethod(render_error)
        _on_overload = staticmethod(on_overload)
        _fast_path = staticmethod(fast_path)
        _on_client_left = staticmethod(on_client_left)

    return ConfiguredHttpProtocol
