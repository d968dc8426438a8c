"""ASGI scopes of requests."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import unquote

from gatekeeper.http.request_head import RequestHead
from gatekeeper.http.types import Scope
from gatekeeper.http.websocket_handshake import offered_protocols

EXTENSION: Final = "gatekeeper.http"
"""The name of the ASGI extension of this server.

`scope["extensions"][EXTENSION]["target"]` is the request target in the client's spelling, a bare `?` included, and
`["headers"]` are the headers with their names as they were read, which is how a backend gets them. The last
`http.request` message has `trailers`, a list of headers, if there are any. `http.response.start` may have `reason`, the
reason phrase in bytes. Before it, `gatekeeper.http.informational` with `status` and `headers` sends an interim
response: 100 if the client waits for it, others to HTTP/1.1 clients.
"""


class ScopeFactory:
    """Makes the scopes for the requests of one connection. `client` is address and port of the other side, None on a
    Unix socket."""

    __slots__ = ("_app_state", "_asgi_version", "_root_path", "_server", "client", "scheme")

    def __init__(
        self, transport: asyncio.BaseTransport, *, root_path: str, asgi_version: str, app_state: dict[str, Any]
    ) -> None:
        peer, name = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None
        self._server = (str(name[0]), int(name[1])) if isinstance(name, tuple) else (name, None) if name else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._root_path = root_path
        self._asgi_version = asgi_version
        self._app_state = app_state

    def make(self, head: RequestHead) -> Scope:
        """Return a new scope for the request with this head."""
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        root = self._root_path
        return {
            "type": "http",
            "asgi": {"version": self._asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": root,
            "method": head.method,
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode("ascii") + raw_path,
            "query_string": query,
            # A copy: the section is shared with other requests.
            "headers": list(head.headers),
            "state": self._app_state.copy(),
            "extensions": {
                "http.response.trailers": {},
                EXTENSION: {"target": head.target, "headers": head.section.spelled},
            },
        }

    def make_websocket(self, head: RequestHead) -> Scope:
        """Return a new scope for a checked WebSocket handshake with this head."""
        scope = self.make(head)
        del scope["method"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if self.scheme == "https" else "ws"
        scope["subprotocols"] = [item.decode("latin-1") for item in offered_protocols(head.headers)]
        scope["extensions"] = {"websocket.http.response": {}}
        return scope
