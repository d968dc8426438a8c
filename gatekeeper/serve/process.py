"""One process that checks and forwards requests: the only one, or one worker of several."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys

from gatekeeper.app import create_app, create_ops
from gatekeeper.build import build_sidecar
from gatekeeper.forward.http import ResponseTruncated
from gatekeeper.serve.drain import Drain
from gatekeeper.serve.listeners import limits, make_server, serving
from gatekeeper.serve.start import announce
from gatekeeper.server import http_protocol
from gatekeeper.server.websocket import websocket_protocol
from gatekeeper.settings import Settings
from gatekeeper.telemetry import logs
from gatekeeper.telemetry.health import Health, of_registry
from gatekeeper.web.server_errors import ServerErrors
from gatekeeper.web.session_end import ResponseCut


async def serve(
    settings: Settings, public: socket.socket, ops: socket.socket | None, *, parent: int | None = None
) -> int:
    """Serve until the drain is over, and return the exit code.

    `parent` is the process id of a worker's parent, which has the ops port. Raises `EmbeddedStoreFailed`.
    """
    engine = build_sidecar(settings)
    health = Health(engine.readiness.faults)
    app, fast_path = create_app(settings, engine)
    on_client_left = engine.verify_queue.cancel
    protocol = http_protocol(
        limits(settings),
        ServerErrors(engine.rules, engine.responder, engine.telemetry),
        on_overload=engine.telemetry.connection_refused,
        fast_path=fast_path,
        on_client_left=on_client_left,
    )
    server = make_server(app, protocol, grace_seconds=settings.shutdown_grace, ws=websocket_protocol(on_client_left))
    # Handle signals first: one that comes during the start must not leave an embedded store running.
    async with Drain(settings, health, server, parent):
        try:
            await engine.runtime.start()
            _tune_garbage_collection()
            if not health.draining:
                if parent is None:
                    announce(settings, engine.claimed, public, ops)
                async with serving(create_ops(health, of_registry(engine.telemetry.metrics.registry)), settings, ops):
                    await server.serve(sockets=[public])
        finally:
            await engine.runtime.aclose()
    return 0 if server.started or health.draining else 1


def _tune_garbage_collection() -> None:
    # The objects of now live as long as the process: no collection needs to scan them, which would take 0.1 s each.
    gc.collect()
    gc.freeze()
    # Later objects are freed with their request. A scan every 700 objects, which is the default and fewer than a few
    # requests make, costs 5 % of the processor; 50,000 objects are 5 MB at most.
    gc.set_threshold(50_000)


def configure_logs(settings: Settings) -> None:
    """Send logs to stderr in the format of `LOG_FORMAT`; without that setting, as text to a terminal, else as JSON."""
    as_json = settings.log_format == "json" or (settings.log_format is None and not sys.stderr.isatty())
    logs.configure(as_json=as_json, level=settings.log_level)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.addFilter(_ExpectedErrors())
    uvicorn_log.setLevel(logging.WARNING)


class _ExpectedErrors(logging.Filter):
    """Drops tracebacks of responses that break off for a reason outside the process: the backend broke off, the session
    ended, or the drain deadline passed. The access log and the metrics have all three."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ResponseTruncated | ResponseCut | asyncio.CancelledError)
