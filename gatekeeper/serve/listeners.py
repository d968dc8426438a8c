"""Listening sockets, and the uvicorn servers that accept from them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import uvicorn

from gatekeeper.serve import inherited
from gatekeeper.serve.inherited import CannotListen
from gatekeeper.server import ErrorResponse, Limits, RejectedRequest, http_protocol
from gatekeeper.server.listener import Listener
from gatekeeper.server.protocol import HttpServerProtocol
from gatekeeper.settings import ListenAddress, Settings

_BACKLOG: Final = 2048


def bind(address: ListenAddress) -> socket.socket:
    """Return a socket that has the address and does not listen yet, so that a start that fails never accepts; one that
    is inherited may listen already. Child processes may inherit it. Raises `CannotListen`."""
    if address.fd is not None:
        return inherited.take(address.fd)
    if (passed := inherited.with_address(address)) is not None:
        return passed
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
        listener.set_inheritable(True)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from None
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients connect. Raises `CannotListen`."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address_of(listener)}: {error.strerror or error}") from None


def _is_stale(path: str) -> bool:
    """Return True if the socket file exists and no process listens on it."""
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0


def address_of(listener: socket.socket) -> str:
    """Return `http://127.0.0.1:8000`, or `unix:/path`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def public_address(settings: Settings) -> ListenAddress:
    """Return the address for clients: that of the settings, else the first socket of systemd, else the default."""
    passed = inherited.numbers() if "listen" not in settings.model_fields_set else ()
    return ListenAddress(fd=passed[0]) if passed else settings.listen


def limits(settings: Settings) -> Limits:
    """Return the limits of every client connection, on the public and on the ops port."""
    return Limits(
        max_header_bytes=settings.max_header_bytes,
        max_headers=settings.max_headers,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        keepalive_timeout=settings.keepalive_timeout,
        keepalive_max_age=settings.keepalive_max_age,
        max_connections=settings.max_connections,
        max_body_bytes=settings.max_body,
    )


def make_server(
    app: Any,
    http: type[HttpServerProtocol],
    *,
    grace_seconds: float,
) -> Listener:
    """Return a uvicorn server for `app` that reads connections with the protocol class `http`.

    It adds no headers to responses, does not configure logging, and does not trust forwarding headers.
    """
    return Listener(
        uvicorn.Config(
            app,
            loop="none",
            http=http,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            # uvicorn declares an int, but passes the value to asyncio.wait_for, which takes fractions of a second.
            timeout_graceful_shutdown=grace_seconds,  # type: ignore[arg-type]
        ),
        http,
    )


@contextlib.asynccontextmanager
async def serving(app: Any, settings: Settings, where: socket.socket | None) -> AsyncIterator[None]:
    """Serve `app` on the socket `where` for as long as the block runs; without a socket, do nothing."""
    if where is None:
        yield
        return
    # At once, so that a probe that comes now waits and is not refused.
    listen(where)
    server = make_server(app, http_protocol(limits(settings), _plain_error), grace_seconds=1)
    task = asyncio.create_task(server.serve(sockets=[where]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _plain_error(rejected: RejectedRequest) -> ErrorResponse:
    """Render the response to a rejected request as plain text: no client of the ops port needs a JSON body."""
    return ErrorResponse([(b"content-type", b"text/plain; charset=utf-8")], f"{rejected.detail}\n".encode())
