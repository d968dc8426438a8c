"""Steps that a single process and the parent of workers have in common at their start."""

from __future__ import annotations

import logging
import socket
import sys

from gatekeeper.build import build
from gatekeeper.serve.listeners import address_of
from gatekeeper.settings import Settings
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.web.engine import Engine

_log = logging.getLogger("gatekeeper")


def build_engine(settings: Settings) -> Engine:
    """Build the engine of a sidecar, with its access log on stdout."""
    text = settings.log_format == "text" or (settings.log_format is None and sys.stdout.isatty())
    return build(settings, mode="sidecar", access_log=AccessLog(text=text))


def announce(settings: Settings, engine: Engine, public: socket.socket, ops: socket.socket | None) -> None:
    """Log the start line: both addresses, the backend, and every path that Gatekeeper serves itself."""
    _log.info(
        "server listening",
        extra={
            "listen": address_of(public),
            "ops": address_of(ops) if ops is not None else "off",
            "upstream": settings.upstream_url,
            "paths": engine.claimed,
        },
    )
