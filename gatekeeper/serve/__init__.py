"""`gatekeeper serve`: one process, or several workers that accept connections from one socket.

With one worker, one event loop serves the public and the ops port (`process`). With several, a parent process serves
the ops port, handles no requests and restarts workers that exit (`workers`). `listeners` binds sockets and configures
uvicorn, `drain` shuts a process down.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvloop
from prometheus_client import disable_created_metrics

from gatekeeper.serve.listeners import CannotListen, bind
from gatekeeper.serve.process import configure_logs, serve
from gatekeeper.serve.workers import Workers
from gatekeeper.settings import Settings, load
from gatekeeper.store.embedded import EmbeddedStoreFailed


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code of the process."""
    configure_logs(settings)
    _raise_file_limit()
    # Without this, each counter has a second sample with its creation time.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        public = bind(settings.listen)
        ops = bind(settings.ops_listen) if settings.ops_listen is not None else None
        if settings.workers == 1:
            return uvloop.run(serve(settings, public, ops))
        return _run_workers(settings, public, ops)
    except (CannotListen, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)  # noqa: T201 - the process exits with this message
        return 1


def _raise_file_limit() -> None:
    """Allow as many open files as the system permits: the lower soft limit exists for programs that use `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run_workers(settings: Settings, public: socket.socket, ops: socket.socket | None) -> int:
    with tempfile.TemporaryDirectory(prefix="gatekeeper-metrics-") as folder:
        # prometheus_client reads this variable on import. The workers have yet to import it, this process has done so.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        return uvloop.run(Workers(settings, public, run_worker).run(ops, Path(folder)))


def run_worker(public: socket.socket, parent: int) -> None:
    """Run one worker process: no ops port, and settings from the environment that it inherits from its parent."""
    # Ctrl-C reaches the whole process group; the worker waits for its parent to terminate it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load(require_upstream=True)
    configure_logs(settings)
    sys.exit(uvloop.run(serve(settings, public, None, parent=parent)))
