"""Opening connections to the backend."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.net import enable_keepalive

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


class BackendAddress(NamedTuple):
    """The address of the backend. `authority` is the `Host` of requests without one; `socket_path` is that of a Unix
    socket, None over TCP."""

    is_tls: bool
    host: str
    port: int
    authority: bytes
    socket_path: str | None


class SeparateConnection(NamedTuple):
    """A new connection to the backend, from which nothing is read yet. `authority` is the `Host` of requests without
    one; `timeout_seconds` bounds the backend's silence while it owes a response."""

    transport: asyncio.Transport
    authority: bytes
    timeout_seconds: float


class Connector:
    """Opens connections to the backend at `url` (`http://host:port`, `https://…`, `http+unix:///path.sock`).

    The host name is resolved for every connection. `timeout_seconds` bounds all of it, TLS included; `ca_file` is a PEM
    bundle that replaces the system's certificate authorities; `alpn` are the protocols offered over TLS (RFC 7301),
    empty for no offer. Raises ValueError for a URL of another form.
    """

    def __init__(
        self, url: str, *, timeout_seconds: float, ca_file: str | None = None, alpn: Sequence[str] = ()
    ) -> None:
        self.origin = parse_backend_url(url)
        self.ssl_context = ssl.create_default_context(cafile=ca_file) if self.origin.is_tls else None
        if self.ssl_context is not None and alpn:
            self.ssl_context.set_alpn_protocols(list(alpn))
        self._timeout_seconds = timeout_seconds

    async def connect(self, factory: Callable[[], _P]) -> _P:
        """Open a connection for the protocol that `factory` makes. Raises UpstreamUnavailable or UpstreamTimeout."""
        loop = asyncio.get_running_loop()
        origin = self.origin
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if origin.socket_path is not None:
                    _, protocol = await loop.create_unix_connection(factory, origin.socket_path)
                else:
                    _, protocol = await loop.create_connection(factory, origin.host, origin.port, ssl=self.ssl_context)
        except TimeoutError as error:
            raise UpstreamTimeout("the backend was silent for too long (connect)") from error
        except OSError as error:
            raise UpstreamUnavailable(f"the backend cannot be reached: {error}", kind="connect") from error
        return protocol

    async def dial(self, silence_seconds: float) -> SeparateConnection:
        """Open a connection for a protocol that is still to be set."""
        protocol = await self.connect(_Unread)
        return SeparateConnection(protocol.transport, self.origin.authority, silence_seconds)


class _Unread(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not a subclass.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        # A WebSocket may be silent for any time.
        enable_keepalive(transport)


def parse_backend_url(url: str) -> BackendAddress:
    """Parse the URL of a backend. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix" and parts.path.startswith("/") and not parts.netloc:
        return BackendAddress(is_tls=False, host="localhost", port=80, authority=b"localhost", socket_path=parts.path)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.username:
        # Not quoted: a URL can hold a password.
        raise ValueError("the URL of a backend is http://host:port, https://host:port or http+unix:///path.sock")
    is_tls = parts.scheme == "https"
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    port = parts.port or (443 if is_tls else 80)
    return BackendAddress(is_tls, host, port, parts.netloc.encode(), socket_path=None)
