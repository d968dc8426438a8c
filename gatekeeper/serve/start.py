"""Steps that a single process and the parent of workers have in common at their start."""

from __future__ import annotations

import logging
import socket

from gatekeeper.serve.listeners import address_of
from gatekeeper.settings import Settings

_log = logging.getLogger("gatekeeper")


def announce(settings: Settings, claimed: list[str], public: socket.socket, ops: socket.socket | None) -> None:
    """Log the start line: both addresses, the backend, and every path that Gatekeeper serves itself."""
    _log.info(
        "server listening",
        extra={
            "listen": address_of(public),
            "ops": address_of(ops) if ops is not None else "off",
            "upstream": settings.upstream_url,
            "paths": claimed,
        },
    )
