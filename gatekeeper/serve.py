"""What runs: listeners, workers and their end.

One worker is one process with the public and the ops listener in one event loop. Several are processes that accept from
one socket; their parent has the ops port, judges nothing, and starts a worker again that dies.

The end: SIGTERM or SIGINT makes `/readyz` 503 at once, requests are still accepted for `SHUTDOWN_DELAY`, what is in
flight then has `SHUTDOWN_GRACE` to finish; a second signal ends at once. The ops port lives until the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop
from prometheus_client import disable_created_metrics
from prometheus_client.multiprocess import mark_process_dead

from gatekeeper.app import create_app, create_ops
from gatekeeper.build import build
from gatekeeper.forward.http import ResponseTruncated
from gatekeeper.server import ErrorResponse, Limits, RejectedRequest, http_protocol
from gatekeeper.server.listener import Listener
from gatekeeper.server.protocol import HttpServerProtocol
from gatekeeper.server.websocket import WebSocketServerProtocol, websocket_protocol
from gatekeeper.settings import ListenAddress, Settings, load
from gatekeeper.store.embedded import EmbeddedStoreFailed
from gatekeeper.telemetry import logs
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.health import Health, of_registry, of_workers
from gatekeeper.upstream.websocket import MAX_MESSAGE_BYTES
from gatekeeper.web.engine import Engine
from gatekeeper.web.server_errors import ServerErrors
from gatekeeper.web.session_end import ResponseCut

_log = logging.getLogger("gatekeeper")

_BACKLOG: Final = 2048
_RESTART_SECONDS: Final = 0.5


class CannotListen(Exception):
    """An address that cannot be bound; the text says which and why."""


def bind(address: ListenAddress) -> socket.socket:
    """A listening socket. Raises `CannotListen`."""
    listener: socket.socket | None = None
    try:
        if address.path is not None:
            listener = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(FileNotFoundError):
                if _is_stale(address.path):
                    Path(address.path).unlink()
            listener.bind(address.path)
        else:
            family, kind, protocol, _, where = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
        listener.listen(_BACKLOG)
        listener.set_inheritable(True)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from None
    return listener


def _is_stale(path: str) -> bool:
    """Whether a socket file is there and nobody listens on it."""
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0


def address_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8000`, or `unix:/path`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def limits(settings: Settings) -> Limits:
    """What a client connection may cost."""
    return Limits(
        max_header_bytes=settings.max_header_bytes,
        max_headers=settings.max_headers,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        keepalive_timeout=settings.keepalive_timeout,
        max_connections=settings.max_connections,
        max_body_bytes=settings.max_body,
    )


def listener(
    app: Any,
    http: type[HttpServerProtocol],
    *,
    grace_seconds: float,
    ws: type[WebSocketServerProtocol] = WebSocketServerProtocol,
) -> Listener:
    """A server for `app` behind the front door `http`. What uvicorn would add to answers, log by itself or believe of
    forwarding headers is off."""
    return Listener(
        uvicorn.Config(
            app,
            loop="none",
            http=http,
            ws=ws,
            ws_max_size=MAX_MESSAGE_BYTES,
            # A few hundred bytes would inflate to the limit, and every connection would keep its windows.
            ws_per_message_deflate=False,
            # The ping lets TCP notice a client that is gone. There is no deadline for its answer: a client that is read
            # from slowly, because the backend is slow, is heard late.
            ws_ping_interval=20.0,
            ws_ping_timeout=None,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            # Typed as whole seconds, used as those of asyncio.wait_for.
            timeout_graceful_shutdown=grace_seconds,  # type: ignore[arg-type]
        ),
        http.responders,
    )


class _NoBugOfOurs(logging.Filter):
    """A backend that breaks off in the middle, an answer whose session has ended, and a request that the end of the
    drain cuts, are in the access log and in the metrics. None is worth a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ResponseTruncated | ResponseCut | asyncio.CancelledError)


def configure_logs(settings: Settings) -> None:
    """Logs as the settings say: JSON when stderr is not a terminal and nothing else was said."""
    as_json = settings.log_format == "json" or (settings.log_format is None and not sys.stderr.isatty())
    logs.configure(as_json=as_json, level=settings.log_level)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.addFilter(_NoBugOfOurs())
    uvicorn_log.setLevel(logging.WARNING)


def _raise_file_limit() -> None:
    """As many files as the system lets us open: the soft limit is for programs that use `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run(settings: Settings) -> int:
    """Serves until a signal says otherwise; the exit code."""
    configure_logs(settings)
    _raise_file_limit()
    # A second sample for each counter, of when it was made, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        public = bind(settings.listen)
        ops = bind(settings.ops_listen) if settings.ops_listen is not None else None
        if settings.workers == 1:
            return uvloop.run(serve(settings, public, ops))
        return _serve_workers(settings, public, ops)
    except (CannotListen, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)  # noqa: T201 - the last word of the process
        return 1


def announce(settings: Settings, engine: Engine, public: socket.socket, ops: socket.socket | None) -> None:
    """The start line: where, what for, and every path that is Gatekeeper's own."""
    _log.info(
        "gatekeeper is listening",
        extra={
            "listen": address_of(public),
            "ops": address_of(ops) if ops is not None else "off",
            "upstream": settings.upstream_url,
            "paths": engine.claimed,
        },
    )


async def serve(
    settings: Settings, public: socket.socket, ops: socket.socket | None, *, parent: int | None = None
) -> int:
    """One process that judges and forwards; the exit code. A worker has a `parent` and no ops port."""
    engine = _engine(settings)
    health = Health(engine.readiness.faults)
    app, shortcut = create_app(settings, engine)
    overloaded = engine.telemetry.connection_refused
    left = engine.verify_queue.cancel
    door = http_protocol(
        limits(settings),
        ServerErrors(engine.rules, engine.responder, engine.telemetry),
        on_overload=overloaded,
        fast_path=shortcut,
        on_client_left=left,
    )
    front = listener(app, door, grace_seconds=settings.shutdown_grace, ws=websocket_protocol(left))
    # Signals first: one that comes during the start must not leave a store behind.
    async with Drain(settings, health, front, parent):
        try:
            await engine.runtime.start()
            # What is there now stays: no collection needs to look at it again, and each would take a tenth of a second.
            gc.collect()
            gc.freeze()
            # What is new is gone with its request. Looked through every 700 objects, which is the default and less than
            # a few requests have, it costs one part in twenty of the processor; so many are five megabytes at most.
            gc.set_threshold(50_000)
            if not health.draining:
                if parent is None:
                    announce(settings, engine, public, ops)
                async with serving(create_ops(health, of_registry(engine.telemetry.metrics.registry)), settings, ops):
                    await front.serve(sockets=[public])
        finally:
            await engine.runtime.aclose()
    return 0 if front.started or health.draining else 1


@contextlib.asynccontextmanager
async def serving(app: Any, settings: Settings, where: socket.socket | None) -> AsyncIterator[None]:
    """`app` on a listener of its own, beside whatever runs inside; without a socket, nothing."""
    if where is None:
        yield
        return
    server = listener(app, http_protocol(limits(settings), _plain), grace_seconds=1)
    task = asyncio.create_task(server.serve(sockets=[where]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _plain(refusal: RejectedRequest) -> ErrorResponse:
    """An answer on the ops port."""
    return ErrorResponse([(b"content-type", b"text/plain; charset=utf-8")], f"{refusal.detail}\n".encode())


class Drain:
    """The end of one listener, in order: SIGTERM or SIGINT begins it, and so does the end of a worker's parent."""

    def __init__(self, settings: Settings, health: Health, front: Listener, parent: int | None) -> None:
        self._delay_seconds = settings.shutdown_delay
        self._health = health
        self._front = front
        self._parent = parent
        # Ctrl-C reaches the whole process group; a worker waits for its parent's word.
        self._signals = (signal.SIGTERM,) if parent else (signal.SIGTERM, signal.SIGINT)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self.begin)
        if self._parent is not None:
            self._tasks.append(asyncio.create_task(self._watch_parent()))

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.remove_signal_handler(number)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self) -> None:
        if self._health.draining:
            # The second signal: at once.
            self._front.should_exit = self._front.force_exit = True
            return
        _log.info("shutting down")
        self._health.draining = True
        self._tasks.append(asyncio.create_task(self._finish()))

    async def _finish(self) -> None:
        await asyncio.sleep(self._delay_seconds)
        self._front.should_exit = True

    async def _watch_parent(self) -> None:
        while os.getppid() == self._parent:  # noqa: ASYNC110 - nobody tells when a parent dies
            await asyncio.sleep(_RESTART_SECONDS)
        if not self._health.draining:
            self.begin()


def _engine(settings: Settings) -> Engine:
    text = settings.log_format == "text" or (settings.log_format is None and sys.stdout.isatty())
    return build(settings, mode="sidecar", access_log=AccessLog(text=text))


def _serve_workers(settings: Settings, public: socket.socket, ops: socket.socket | None) -> int:
    """The parent of several workers."""
    with tempfile.TemporaryDirectory(prefix="gatekeeper-metrics-") as folder:
        # Read by prometheus_client when it is imported: by the workers, not by this process, which has done so.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        return uvloop.run(Workers(settings, public).run(ops, Path(folder)))


class Workers:
    """Worker processes on one socket, kept at their number until the drain."""

    def __init__(self, settings: Settings, public: socket.socket) -> None:
        self._settings = settings
        self._public = public
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []

    def __repr__(self) -> str:
        return f"<Workers [{sum(process.is_alive() for process in self._processes)} alive]>"

    async def run(self, ops: socket.socket | None, folder: Path) -> int:
        # Not for requests: it holds the embedded store alive and answers for the health of the whole.
        engine = _engine(self._settings)
        health = Health(engine.readiness.faults)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, health)
        try:
            await engine.runtime.start()
            announce(self._settings, engine, self._public, ops)
            async with serving(create_ops(health, of_workers(folder)), self._settings, ops):
                codes = await self._supervise(health)
        finally:
            await engine.runtime.aclose()
        # A worker that is told to end before it has begun ends by the signal itself; it had accepted nothing.
        return 0 if all(code in {0, -signal.SIGTERM} for code in codes) else 1

    def _signalled(self, health: Health) -> None:
        if not health.draining:
            health.draining = True
            # As long as one process listens, connections are taken that nobody will answer.
            asyncio.get_running_loop().call_later(self._settings.shutdown_delay, self._public.close)
        for process in self._processes:
            if process.is_alive():
                process.terminate()

    async def _supervise(self, health: Health) -> list[int | None]:
        self._processes = [self._start() for _ in range(self._settings.workers) if not health.draining]
        while any(process.is_alive() for process in self._processes) or not health.draining:
            for position, process in enumerate(self._processes):
                if process.is_alive() or health.draining:
                    continue
                _log.error("a worker ended and is started again", extra={"exit_code": process.exitcode})
                mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                self._processes[position] = self._start()
            await asyncio.sleep(_RESTART_SECONDS / 5)
        return [process.exitcode for process in self._processes]

    def _start(self) -> BaseProcess:
        process = self._context.Process(target=_work, args=(self._public, os.getpid()), name="gatekeeper-worker")
        process.start()
        return process


def _work(public: socket.socket, parent: int) -> None:
    """A worker: the same as a single process, without an ops port; the environment is its parent's."""
    # Ctrl-C reaches the whole group; the parent is the one that tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load(require_upstream=True)
    configure_logs(settings)
    sys.exit(uvloop.run(serve(settings, public, None, parent=parent)))
