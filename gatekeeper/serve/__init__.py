"""`gatekeeper serve`: one process, or several workers that accept connections from one socket.

With one worker, one event loop serves the public and the ops port (`process`). With several, a parent process serves
the ops port and handles no requests (`workers`), and starts, watches and replaces the others (`crew`, `pulse`).
`listeners` binds sockets and configures uvicorn, `inherited` takes those of systemd, `drain` shuts a process down and
`reload` reads the settings again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvloop
from prometheus_client import disable_created_metrics

from gatekeeper.serve.inherited import CannotListen
from gatekeeper.serve.listeners import bind, public_address
from gatekeeper.serve.process import configure_logs, serve
from gatekeeper.serve.pulse import Pulse
from gatekeeper.serve.reload import Reread
from gatekeeper.serve.workers import Workers
from gatekeeper.settings import Settings
from gatekeeper.store.embedded import EmbeddedStoreFailed


def run(settings: Settings, reread: Reread | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code of the process. At SIGHUP, `reread` reads the settings
    again."""
    configure_logs(settings)
    _raise_file_limit()
    # Without this, each counter has a second sample with its creation time.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    reread = reread or Reread()
    try:
        public = bind(public_address(settings))
        ops = bind(settings.ops_listen) if settings.ops_listen is not None else None
        if settings.workers == 1:
            return uvloop.run(serve(settings, public, ops, reread=reread))
        return _run_workers(settings, public, ops, reread)
    except (CannotListen, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)  # noqa: T201 - the process exits with this message
        return 1


def _raise_file_limit() -> None:
    """Allow as many open files as the system permits: the lower soft limit exists for programs that use `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run_workers(settings: Settings, public: socket.socket, ops: socket.socket | None, reread: Reread) -> int:
    with tempfile.TemporaryDirectory(prefix="gatekeeper-metrics-") as folder:
        # prometheus_client reads this variable on import. The workers have yet to import it, this process has done so.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        return uvloop.run(_parent(settings, public, ops, reread, Path(folder)))


async def _parent(
    settings: Settings, public: socket.socket, ops: socket.socket | None, reread: Reread, folder: Path
) -> int:
    return await Workers(settings, public, run_worker, metrics_folder=folder, reread=reread).run(ops)


def run_worker(settings: Settings, public: socket.socket, pulse: Pulse, parent: int) -> None:
    """Run one worker process: no ops port, and the settings that its parent has read."""
    # These reach the whole process group; the worker waits for its parent to terminate it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    configure_logs(settings)
    try:
        code = uvloop.run(serve(settings, public, None, parent=parent, pulse=pulse))
    except (CannotListen, EmbeddedStoreFailed) as error:
        logging.getLogger("gatekeeper").error("worker not started: %s", error)  # noqa: TRY400 - expected
        code = 1
    sys.exit(code)
