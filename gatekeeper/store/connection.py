"""The wire to one server of the store: one connection, many calls on it, each answered in its turn.

Calls of one turn of the event loop leave in one write; replies are taken in the order of the calls. A caller that has
left keeps its place in that order, so nobody is ever given another's reply (the class of CVE-2023-28858). Whatever
makes that order doubtful (a time-out, bytes that are no RESP, a reply that nobody asked for) closes the connection, and
every call on it fails: its script may have run, so it is never sent again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

import msgspec
from hiredis import ProtocolError, PushNotification, Reader, ReplyError, pack_command

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.command import ReplyReceiver
from gatekeeper.store.errors import unavailable_from

# Enough to keep a store's process busy while replies are read, and a bounded piece of work that it has in hand.
IN_FLIGHT: Final = 512
# Three calls of each of the 10,000 connections that a worker may have.
WAITING: Final = 32_768
# R8: whatever happens, the two connections to a server are not tried more than ten times a second.
RECONNECT_SECONDS: Final = 0.2
_SWEEPS: Final = 16
_SWEEP_SECONDS: Final = 0.05
_ENDS: Final = object()
# Passes the reply of a command that belongs to the next one, such as ASKING, over.
_NOBODY: Final = None


class PendingCall:
    """One command on its way. `reply` is told the answer, or a `StoreUnavailable`."""

    __slots__ = ("asking", "attempts", "command", "deadline", "durable", "fault", "key", "packed", "reply", "source")

    def __init__(
        self,
        command: tuple[Any, ...],
        reply: ReplyReceiver,
        deadline: float,
        *,
        source: str | None = None,
        durable: bool = False,
        key: bytes = b"",
        packed: bytes | None = None,
    ) -> None:
        self.command = command
        self.key = key
        self.packed = pack_command(command) if packed is None else packed
        self.reply = reply
        self.deadline = deadline
        # The script's text, for a server that does not know its hash.
        self.source = source
        self.durable = durable
        self.asking = False
        self.attempts = 0
        # Why it was refused last, where that may pass.
        self.fault: StoreUnavailable | None = None

    def with_source(self) -> None:
        """From now on it brings its script along."""
        self.command = ("EVAL", self.source, *self.command[2:])
        self.packed = pack_command(self.command)

    def fail(self, error: BaseException) -> StoreUnavailable | None:
        """Tells the caller, unless it has left. What it was told."""
        if self.reply.done():
            return None
        told = unavailable_from(error)
        self.reply.set_exception(told)
        return told


class ConnectionHandler(Protocol):
    """What a `StoreConnection` asks of the one who feeds it."""

    def answered(self, call: PendingCall, reply: Any) -> None: ...
    def refused(self, call: PendingCall, error: ReplyError) -> None: ...
    def read(self) -> None: ...
    def writable(self) -> None: ...
    def lost(self, wire: StoreConnection, error: BaseException) -> None: ...


class StoreConnection(asyncio.Protocol):
    """One connection. `pending` are the calls that were written and not answered, oldest first."""

    def __init__(self, feeder: ConnectionHandler) -> None:
        self._feeder = feeder
        self._reader = Reader(notEnoughData=_ENDS)
        self._transport: asyncio.Transport | None = None
        self.pending: deque[PendingCall | None] = deque()
        self.paused = False
        # Nothing more is to be sent over it.
        self.retired = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def write(self, calls: Sequence[PendingCall]) -> None:
        """Sends calls, all in one write."""
        packed: list[bytes] = []
        for call in calls:
            if call.asking:
                packed.append(b"*1\r\n$6\r\nASKING\r\n")
                self.pending.append(_NOBODY)
            packed.append(call.packed)
            self.pending.append(call)
        if self._transport is not None:
            self._transport.write(b"".join(packed))

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        gets, pending, feeder = self._reader.gets, self.pending, self._feeder
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _ENDS:
                kind = type(reply)
                if not pending or kind is PushNotification:
                    raise ProtocolError("a reply that nobody asked for")  # noqa: TRY301 - as bytes that are no RESP
                call = pending.popleft()
                if call is _NOBODY:
                    continue
                if kind is ReplyError:
                    feeder.refused(call, reply)
                else:
                    feeder.answered(call, reply)
        except ProtocolError as error:
            self.close(error)
        else:
            feeder.read()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._feeder.writable()

    def eof_received(self) -> None:
        self.close(ConnectionResetError())

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or ConnectionResetError())

    def close(self, error: BaseException) -> None:
        """Closes the connection; calls that are pending fail. A second time does nothing."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._feeder.lost(self, error)

    def overdue(self, now: float) -> bool:
        """Whether a call should have been answered by now, its caller gone or not."""
        return any(call is not _NOBODY and call.deadline <= now for call in self.pending)


class Server(msgspec.Struct, frozen=True):
    """Where a server of the store is: an address of TCP, or the path of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class ConnectionOptions(msgspec.Struct, frozen=True):
    """How a connection begins."""

    user: str | None = None
    password: str | None = None
    database: int = 0
    tls: ssl.SSLContext | None = None
    must_be_master: bool = False
    # Sentinels may ask for the password of the store, or for none.
    password_is_optional: bool = False

    def __repr__(self) -> str:
        return f"<ConnectionOptions to database {self.database}{' over TLS' if self.tls else ''}>"


async def connect(
    server: Server, login: ConnectionOptions, make: Callable[[], StoreConnection], deadline: float
) -> StoreConnection:
    """A connection that is logged in. Raises `OSError` or `StoreUnavailable`; the caller bounds it in time."""
    loop = asyncio.get_running_loop()
    opening: Awaitable[tuple[Any, StoreConnection]]
    if server.path:
        opening = loop.create_unix_connection(make, server.path)
    else:
        named = server.host if login.tls else None
        opening = loop.create_connection(make, server.host, server.port, ssl=login.tls, server_hostname=named)
    try:
        _, wire = await opening
    except ssl.SSLError as error:
        raise StoreUnavailable(
            f"the session store failed: connection (TLS to {server}: {_why(error)})", kind="connection"
        ) from None
    try:
        await _begin(wire, login, deadline)
    except BaseException:
        wire.close(ConnectionAbortedError())
        raise
    return wire


def _why(error: ssl.SSLError) -> str:
    """In words of OpenSSL's, which know of names and certificates, and of nothing secret."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    return (error.reason or type(error).__name__).lower().replace("_", " ")


async def _begin(wire: StoreConnection, login: ConnectionOptions, deadline: float) -> None:
    commands: list[tuple[Any, ...]] = [("CLIENT", "SETNAME", "gatekeeper")]
    if login.password is not None:
        commands.insert(0, ("AUTH", *([login.user] if login.user else []), login.password))
    if login.database:
        commands.append(("SELECT", login.database))
    if login.must_be_master:
        commands.append(("ROLE",))
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
    wire.write([PendingCall(command, answer, deadline) for command, answer in zip(commands, answers, strict=True)])
    replies = await asyncio.gather(*answers, return_exceptions=True)
    for command, reply in zip(commands, replies, strict=True):
        # A name is for whoever looks at CLIENT LIST: a store that gives none serves as well.
        optional = command[0] == "CLIENT" or (command[0] == "AUTH" and login.password_is_optional)
        if isinstance(reply, BaseException) and not (optional and isinstance(reply, ReplyError)):
            raise reply
        if command[0] == "ROLE" and not (isinstance(reply, list) and reply[:1] == [b"master"]):
            raise ConnectionError("not a master")


def sweep_seconds(timeout_seconds: float) -> float:
    """How often deadlines are looked at: one timer for all calls costs less than one for each."""
    return min(timeout_seconds / _SWEEPS, _SWEEP_SECONDS)
