"""One connection to a server of the store, which pipelines calls.

The calls of one turn of the event loop leave in one write, and replies are matched to calls in order. A caller that
has left keeps its place in that order, so no caller ever gets another's reply (the class of CVE-2023-28858). Whatever
makes the order doubtful (a timeout, bytes that are not RESP, a reply without a call) closes the connection and fails
every call on it. Such a call may have run, so it is never sent again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

import msgspec
from hiredis import ProtocolError, PushNotification, Reader, ReplyError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.command import Command, ReplyReceiver, server_command
from gatekeeper.store.errors import unavailable_from

_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"
NO_MORE: Final = object()
"""A reader returns this where no further reply is complete."""

# Takes the place of a call among those pending, where the reply is to be dropped: that of ASKING.
_DROPPED: Final = None


class PendingCall:
    """One command that waits or was sent. `receiver` gets the reply or a `StoreUnavailable`. `deadline` is on the clock
    of the event loop."""

    __slots__ = ("asking", "attempts", "command", "deadline", "fault", "receiver")

    def __init__(self, command: Command, receiver: ReplyReceiver, deadline: float) -> None:
        self.command = command
        self.receiver = receiver
        self.deadline = deadline
        # Send ASKING first: the slot is being moved to this node (Redis Cluster specification, "ASK redirection").
        self.asking = False
        self.attempts = 0
        # The last error reply of a server that may accept the command later.
        self.fault: StoreUnavailable | None = None

    def fail(self, error: BaseException) -> StoreUnavailable | None:
        """Gives the caller the error. Returns it as the caller got it, or None where the caller has left."""
        if self.receiver.done():
            return None
        fault = unavailable_from(error)
        self.receiver.set_exception(fault)
        return fault


class ConnectionHandler(Protocol):
    """Receives the events of a `StoreConnection`."""

    def reply_received(self, call: PendingCall, reply: Any) -> None: ...

    def error_received(self, call: PendingCall, error: ReplyError) -> None: ...

    def replies_read(self) -> None:
        """Comes after all replies of one read were handed out."""

    def writing_resumed(self) -> None: ...

    def connection_closed(self, connection: StoreConnection, error: BaseException) -> None:
        """Comes once; the calls in `connection.pending` get no reply any more."""


class StoreConnection(asyncio.Protocol):
    """`pending` are the calls that were written and not replied to, oldest first. A `retired` connection gets no new
    calls."""

    def __init__(self, handler: ConnectionHandler) -> None:
        self._handler = handler
        self._reader = Reader(notEnoughData=NO_MORE)
        self._transport: asyncio.Transport | None = None
        self.pending: deque[PendingCall | None] = deque()
        self.writing_paused = False
        self.retired = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def write(self, calls: Sequence[PendingCall]) -> None:
        """Send calls in one write."""
        packed: list[bytes] = []
        for call in calls:
            if call.asking:
                packed.append(_ASKING)
                self.pending.append(_DROPPED)
            packed.append(call.command.packed)
            self.pending.append(call)
        if self._transport is not None:
            self._transport.write(b"".join(packed))

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        gets, pending, handler = self._reader.gets, self.pending, self._handler
        try:
            self._reader.feed(data)
            while (reply := gets()) is not NO_MORE:
                kind = type(reply)
                if not pending or kind is PushNotification:
                    raise ProtocolError("a reply without a call")  # noqa: TRY301 - handled as bytes that are not RESP
                call = pending.popleft()
                if call is _DROPPED:
                    continue
                if kind is ReplyError:
                    handler.error_received(call, reply)
                else:
                    handler.reply_received(call, reply)
        except ProtocolError as error:
            self.close(error)
        else:
            handler.replies_read()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._handler.writing_resumed()

    def eof_received(self) -> None:
        self.close(ConnectionResetError())

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or ConnectionResetError())

    def close(self, error: BaseException) -> None:
        """Close the connection; `error` is the reason given to the handler. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._handler.connection_closed(self, error)

    def is_overdue(self, now: float) -> bool:
        """Tell whether a call is past its deadline, whether or not its caller still waits."""
        return any(call is not _DROPPED and call.deadline <= now for call in self.pending)


class Server(msgspec.Struct, frozen=True):
    """The address of one server: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class StoreCredentials(msgspec.Struct):
    """The user and the password of the store. They may be replaced, for the connections that are opened from then on:
    all options of one store share them."""

    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"<StoreCredentials of {self.user or 'the default user'}>"


class ConnectionOptions(msgspec.Struct, frozen=True):
    """Credentials, database and TLS of a connection. `password_is_optional` is for sentinels, which may or may not ask
    for the password of the store."""

    credentials: StoreCredentials
    database: int = 0
    tls: ssl.SSLContext | None = None
    must_be_primary: bool = False
    password_is_optional: bool = False

    def __repr__(self) -> str:
        return f"<ConnectionOptions [database {self.database}{', TLS' if self.tls else ''}]>"


async def connect(
    server: Server, options: ConnectionOptions, make: Callable[[], StoreConnection], deadline: float
) -> StoreConnection:
    """Open a connection and authenticate. Raises `OSError` or `StoreUnavailable`. The caller limits the time."""
    loop = asyncio.get_running_loop()
    opening: Awaitable[tuple[Any, StoreConnection]]
    if server.path:
        opening = loop.create_unix_connection(make, server.path)
    else:
        name = server.host if options.tls else None
        opening = loop.create_connection(make, server.host, server.port, ssl=options.tls, server_hostname=name)
    try:
        _, connection = await opening
    except ssl.SSLError as error:
        raise StoreUnavailable(
            f"session store failed: connection (TLS to {server}: {_tls_error(error)})", kind="connection"
        ) from None
    try:
        await _handshake(connection, options, deadline)
    except BaseException:
        connection.close(ConnectionAbortedError())
        raise
    return connection


async def ask(connection: StoreConnection, commands: Sequence[Command], deadline: float) -> list[Any]:
    """Send commands over a connection that no queue uses yet. Return the reply to each, or what was raised instead."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
    connection.write([PendingCall(each, future, deadline) for each, future in zip(commands, futures, strict=True)])
    return list(await asyncio.gather(*futures, return_exceptions=True))


def _tls_error(error: ssl.SSLError) -> str:
    """Return OpenSSL's own words, which hold names of hosts and certificates, and no secret."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    return (error.reason or type(error).__name__).lower().replace("_", " ")


async def _handshake(connection: StoreConnection, options: ConnectionOptions, deadline: float) -> None:
    commands = [server_command("CLIENT", "SETNAME", "gatekeeper")]
    user, password = options.credentials.user, options.credentials.password
    if password is not None:
        commands.insert(0, server_command("AUTH", *([user] if user else []), password))
    if options.database:
        commands.append(server_command("SELECT", options.database))
    if options.must_be_primary:
        commands.append(server_command("ROLE"))
    for command, reply in zip(commands, await ask(connection, commands, deadline), strict=True):
        name = command.words[0]
        # The name is for readers of CLIENT LIST; a server that does not support it is usable.
        optional = name == "CLIENT" or (name == "AUTH" and options.password_is_optional)
        if isinstance(reply, BaseException) and not (optional and isinstance(reply, ReplyError)):
            raise reply
        if name == "ROLE" and not (isinstance(reply, list) and reply[:1] == [b"master"]):
            raise ConnectionError("not a primary")
