"""One process that checks and forwards requests: the only one, or one worker of several."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial

from gatekeeper.app import create_app, create_ops
from gatekeeper.build import build_sidecar, check_keys
from gatekeeper.errors import ConfigError
from gatekeeper.forward.http import ResponseTruncated
from gatekeeper.serve.drain import Drain
from gatekeeper.serve.listeners import limits, listen, make_server, serving
from gatekeeper.serve.pulse import Pulse
from gatekeeper.serve.reload import IN_PLACE, Reread, on_hangup
from gatekeeper.serve.start import announce
from gatekeeper.server import http_protocol
from gatekeeper.server.listener import Listener
from gatekeeper.settings import Settings
from gatekeeper.telemetry import logs
from gatekeeper.telemetry.health import Health, of_registry
from gatekeeper.telemetry.line_writer import redirect_output
from gatekeeper.web.engine import Engine
from gatekeeper.web.server_errors import ServerErrors
from gatekeeper.web.session_end import ResponseCut

_log = logging.getLogger("gatekeeper")


async def serve(
    settings: Settings,
    public: socket.socket,
    ops: socket.socket | None,
    *,
    reread: Reread | None = None,
    parent: int | None = None,
    pulse: Pulse | None = None,
    on_listening: Callable[[], None] | None = None,
) -> int:
    """Serve until the drain is over, and return the exit code.

    `on_listening` is called once the port is open. `reread` reads the settings again at SIGHUP. `parent` is the process
    id of a worker's parent, which has the ops port, and `pulse` tells it how this worker is. Raises
    `EmbeddedStoreFailed`, `CannotListen` and `ConfigError`.
    """
    beats = asyncio.create_task(pulse.keep()) if pulse is not None else None
    engine = build_sidecar(settings)
    if pulse is not None:
        # The parent reads the metrics from files: requests that have begun stand there before any has finished.
        pulse.on_beat = engine.telemetry.metrics.settle
    health = Health(engine.readiness.faults)
    server = _server(settings, engine)
    reloads: set[asyncio.Task[None]] = set()
    # Handle signals first: one that comes during the start must not leave an embedded store running.
    async with Drain(settings, health, server, parent) as drain:
        if reread is not None:
            on_hangup(partial(_reload, settings, engine, reread, reloads), drain.begin)
        try:
            await engine.runtime.start()
            _tune_garbage_collection()
            if not health.draining:
                async with serving(create_ops(health, of_registry(engine.telemetry.metrics.registry)), settings, ops):
                    # Only now: a start that fails has never accepted.
                    listen(public)
                    if parent is None:
                        announce(settings, engine.claimed, public, ops)
                    if on_listening is not None:
                        on_listening()
                    if pulse is not None:
                        server.on_start = pulse.serve
                    await server.serve(sockets=[public])
        finally:
            await engine.runtime.aclose()
            if beats is not None:
                beats.cancel()
    return 0 if server.started or health.draining else 1


def _server(settings: Settings, engine: Engine) -> Listener:
    app, fast_path = create_app(settings, engine)
    protocol = http_protocol(
        limits(settings),
        ServerErrors(engine.rules, engine.responder, engine.telemetry),
        on_overload=engine.telemetry.connection_refused,
        fast_path=fast_path,
        on_client_left=engine.verify_queue.cancel,
    )
    return make_server(app, protocol, grace_seconds=settings.shutdown_grace)


def _reload(settings: Settings, engine: Engine, reread: Reread, running: set[asyncio.Task[None]]) -> None:
    """Replace the secrets of the running engine, and let it read key sets again. `running` holds the task until it is
    over: the event loop alone would let it be collected."""
    kept = set(type(settings).model_fields) - IN_PLACE
    found = reread(settings, kept=kept - {"secret_files"}, check=check_keys)
    if found is not None:
        task = asyncio.create_task(_apply(found, engine))
        running.add(task)
        task.add_done_callback(running.discard)


async def _apply(settings: Settings, engine: Engine) -> None:
    try:
        await engine.reload(settings)
    except ConfigError as error:
        _log.error("configuration not reloaded, the old one stays in use: %s", "; ".join(error.problems))
    else:
        _log.info("configuration reloaded: secrets and key sets are read anew")


def _tune_garbage_collection() -> None:
    # The objects of now live as long as the process: no collection needs to scan them, which would take 0.1 s each.
    gc.collect()
    gc.freeze()
    # Later objects are freed with their request. A scan every 700 objects, which is the default and fewer than a few
    # requests make, costs 5 % of the processor; 50,000 objects are 5 MB at most.
    gc.set_threshold(50_000)


def configure_logs(settings: Settings) -> None:
    """Send logs to stderr in the format of `LOG_FORMAT`; without that setting, as text to a terminal, else as JSON.

    From here on writing to stdout and stderr never waits.
    """
    redirect_output()
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
