"""The calls to one server of the store, in the order in which they were made, over one connection that is opened again
when it is lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from hiredis import ReplyError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.command import Script, server_command
from gatekeeper.store.connection import PendingCall, Server, StoreConnection

# Enough to keep the server busy while replies are read, and a bound on the work that it has accepted.
MAX_IN_FLIGHT: Final = 512
# Three calls of each of the 10,000 connections that a worker may have.
MAX_WAITING: Final = 32_768
# Two queues to a server then open at most ten connections a second (docs/attacks.md, R8).
_RECONNECT_SECONDS: Final = 0.2
# The part of STORE_TIMEOUT that replicas get: calls that come meanwhile wait for this batch, and then for their own.
_REPLICAS_SHARE: Final = 0.5
# Calls of one turn of the event loop that leave together. Fewer cost more writes, more leave the server idle.
_BATCH_SIZE: Final = 8
_SWEEPS_PER_TIMEOUT: Final = 16
_LONGEST_SWEEP_SECONDS: Final = 0.05
_ROLE: Final = server_command("ROLE")


class CommandQueue:
    """Bounded in calls in flight and calls waiting, and in time by each call's deadline.

    `connect` opens the connection. `on_error_reply` gets every call that received an error reply. `on_outcome` gets
    each failure with the time at which its call began, and None once for every read that brought replies.
    `on_disconnect` is called when the connection is lost or cannot be opened. With `replicas`, replies are held back
    until that many replicas have acknowledged the writes.
    """

    def __init__(
        self,
        server: Server,
        connect: Callable[[Callable[[], StoreConnection], float], Awaitable[StoreConnection]],
        *,
        timeout_seconds: float,
        on_error_reply: Callable[[CommandQueue, PendingCall, ReplyError], None],
        on_outcome: Callable[[StoreUnavailable | None, float], None],
        on_disconnect: Callable[[CommandQueue], None],
        replicas: int = 0,
    ) -> None:
        self.server = server
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._on_error_reply = on_error_reply
        self._on_outcome = on_outcome
        self._on_disconnect = on_disconnect
        self._replicas = replicas
        self._waiting: deque[PendingCall] = deque()
        # Sent before those waiting, since they were made before them.
        self._resubmitted: deque[PendingCall] = deque()
        # Calls with the replies that wait for replicas; why they fail once the server has said if it is the primary.
        self._unacknowledged: list[tuple[PendingCall, Any]] = []
        self._unacknowledged_fault: BaseException | None = None
        self._connection: StoreConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._next_attempt = 0.0
        self._error_in_read = False
        # True while calls of this turn of the event loop wait for their write.
        self.is_flush_scheduled = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._resubmitted)

    @property
    def in_flight(self) -> int:
        return len(self._connection.pending) if self._connection is not None else 0

    @property
    def load(self) -> int:
        return self.waiting + self.in_flight

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def is_idle(self) -> bool:
        """True without a connection and without calls."""
        return self._connection is None and self._connecting is None and not self.waiting

    def ensure_connected(self) -> None:
        """Begin to connect, unless there is a connection or an attempt at one."""
        if self._connection is None and self._connecting is None:
            self._connecting = asyncio.create_task(self._reconnect())

    # Sending

    def submit(self, call: PendingCall) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.fail([call], StoreUnavailable("session store overloaded: too many calls are waiting", kind="timeout"))
            return
        self._waiting.append(call)
        if not self.is_flush_scheduled:
            self._schedule_flush()
        elif len(self._waiting) >= _BATCH_SIZE and self._connection is not None:
            # Gives the server something to do while more calls of this turn are made.
            self._flush()
            self.is_flush_scheduled = True

    def resubmit(self, call: PendingCall) -> None:
        """Send a call again, which certainly had no effect."""
        self._resubmitted.append(call)
        if not self.is_flush_scheduled:
            self._schedule_flush()

    def resubmits_source_of(self, script: Script | None) -> bool:
        """Tell whether a call that is sent again carries the text of this script."""
        return any(each.command.script is script and each.command.words[0] == "EVAL" for each in self._resubmitted)

    def _schedule_flush(self) -> None:
        self.is_flush_scheduled = True
        loop = asyncio.get_running_loop()
        # One turn later: the tasks of an `asyncio.gather`, whose calls are to leave together, begin one turn later.
        loop.call_soon(loop.call_soon, self._flush)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(self._sweep_seconds, self._sweep, loop)

    def _flush(self) -> None:
        self.is_flush_scheduled = False
        connection = self._connection
        if connection is None:
            if self._waiting or self._resubmitted:
                self.ensure_connected()
            return
        if connection.retired and not connection.pending:
            connection.close(ConnectionAbortedError())
            return
        room = MAX_IN_FLIGHT - len(connection.pending)
        if connection.retired or connection.writing_paused or (self._replicas and connection.pending):
            return
        batch: list[PendingCall] = []
        for calls in (self._resubmitted, self._waiting):
            while calls and len(batch) < room:
                call = calls.popleft()
                if not call.receiver.done():
                    batch.append(call)
        if batch:
            self._write(connection, batch)

    def _write(self, connection: StoreConnection, batch: list[PendingCall]) -> None:
        if not self._replicas:
            connection.write(batch)
            return
        loop = asyncio.get_running_loop()
        # The replies to WAIT and ROLE have no caller: they are recognised by the names of their commands.
        no_caller = loop.create_future()
        no_caller.cancel()
        deadline = min(call.deadline for call in batch)
        seconds = min(self._timeout_seconds * _REPLICAS_SHARE, (deadline - loop.time()) * 0.8)
        wait = server_command("WAIT", self._replicas, max(1, int(seconds * 1000)))
        # A server that is no primary any more may acknowledge what is lost with it.
        after = [PendingCall(command, no_caller, deadline) for command in (wait, _ROLE)]
        connection.write([*batch, *after])

    # Events of the connection

    def reply_received(self, call: PendingCall, reply: Any) -> None:
        if self._replicas and self._connection is not None:
            self._hold_for_replicas(call, reply)
        elif not call.receiver.done():
            call.receiver.set_result(reply)

    def _hold_for_replicas(self, call: PendingCall, reply: Any) -> None:
        name = call.command.words[0]
        if name == "WAIT":
            if not (isinstance(reply, int) and reply >= self._replicas):
                text = "session store failed: refused (too few replicas acknowledged the write)"
                self._unacknowledged_fault = StoreUnavailable(text, kind="refused")
        elif name == "ROLE":
            self._release(is_primary=isinstance(reply, list) and reply[:1] == [b"master"])
        else:
            self._unacknowledged.append((call, reply))

    def _release(self, *, is_primary: bool) -> None:
        """Hand out the replies that waited for replicas. They fail where these were too few, or where the server has
        been replaced: its successor may lack the writes."""
        held, self._unacknowledged = self._unacknowledged, []
        fault, self._unacknowledged_fault = self._unacknowledged_fault, None
        if not is_primary or self._connection is None or self._connection.retired:
            text = "session store failed: connection (the server was replaced as primary meanwhile)"
            fault = StoreUnavailable(text, kind="connection")
            self.retire()
            self._on_disconnect(self)
        if fault is not None:
            self.fail([earlier for earlier, _ in held], fault)
            return
        for earlier, reply in held:
            if not earlier.receiver.done():
                earlier.receiver.set_result(reply)

    def error_received(self, call: PendingCall, error: ReplyError) -> None:
        if self._connection is None:
            # The reply belongs to the handshake of a connection that is being opened.
            if not call.receiver.done():
                call.receiver.set_exception(error)
        elif call.command.words[0] == "WAIT":
            self._unacknowledged_fault = error
        elif call.command.words[0] == "ROLE":
            # An ACL may forbid the question; then the word of the replicas has to do.
            self._release(is_primary=True)
        else:
            self._error_in_read = True
            self._on_error_reply(self, call, error)

    def replies_read(self) -> None:
        connection = self._connection
        if self._error_in_read:
            # A reply beside an error does not prove that the store is healthy.
            self._error_in_read = False
        elif connection is not None:
            self._on_outcome(None, 0.0)
        has_work = self._waiting or self._resubmitted or (connection is not None and connection.retired)
        if has_work and not self.is_flush_scheduled:
            self._flush()

    def writing_resumed(self) -> None:
        self._flush()

    def connection_closed(self, connection: StoreConnection, error: BaseException) -> None:
        if connection is not self._connection:
            # It was closed during its handshake.
            for call in connection.pending:
                if call is not None and not call.receiver.done():
                    call.receiver.set_exception(error)
            return
        self._connection = None
        pending = [call for call, _ in self._unacknowledged]
        self._unacknowledged.clear()
        self._unacknowledged_fault = None
        pending += [call for call in connection.pending if call is not None]
        self.fail(pending, error)
        self._on_disconnect(self)
        if self._waiting or self._resubmitted:
            self._flush()

    # Connections and deadlines

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if (pause := self._next_attempt - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._next_attempt = loop.time() + _RECONNECT_SECONDS
            deadline = loop.time() + self._timeout_seconds
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._connect(partial(StoreConnection, self), deadline)
            if connection.closed:
                raise ConnectionResetError  # noqa: TRY301 - handled as a connection that was never opened
        except Exception as error:  # noqa: BLE001 - after any error callers must not wait for a connection
            self._connecting = None
            self.fail(self.take_waiting(), error)
            self._on_disconnect(self)
        else:
            self._connecting = None
            self._connection = connection
            self._flush()

    def retire(self) -> None:
        """Send nothing more over the present connection. Its pending calls still get their replies; the next call
        opens another connection."""
        if (connection := self._connection) is not None:
            connection.retired = True
            if not connection.pending:
                connection.close(ConnectionAbortedError())

    def take_waiting(self) -> list[PendingCall]:
        """Remove the calls that were not sent yet, and return them."""
        calls = [*self._resubmitted, *self._waiting]
        self._resubmitted.clear()
        self._waiting.clear()
        return calls

    def disconnect(self, error: BaseException) -> None:
        """Close the connection, if there is one. Its pending calls fail."""
        if self._connection is not None:
            self._connection.close(error)

    @property
    def _sweep_seconds(self) -> float:
        """The interval at which deadlines are checked: one timer for all calls costs less than one for each."""
        return min(self._timeout_seconds / _SWEEPS_PER_TIMEOUT, _LONGEST_SWEEP_SECONDS)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_timer = None
        now = loop.time()
        self._resubmitted = self._without_overdue(self._resubmitted, now)
        self._waiting = self._without_overdue(self._waiting, now)
        if self._connection is not None and self._connection.is_overdue(now):
            self._connection.close(TimeoutError())
        if self._waiting or self._resubmitted or self.in_flight:
            self._sweep_timer = loop.call_later(self._sweep_seconds, self._sweep, loop)

    def _without_overdue(self, calls: deque[PendingCall], now: float) -> deque[PendingCall]:
        overdue = [call for call in calls if call.deadline <= now]
        if not overdue:
            return calls
        self.fail(overdue, TimeoutError())
        return deque(call for call in calls if call.deadline > now)

    def fail(self, calls: list[PendingCall], error: BaseException) -> None:
        """Fail the calls whose callers still wait. After a timeout a caller gets the last error reply, if any."""
        for call in calls:
            fault = call.fail(call.fault if call.fault is not None and isinstance(error, TimeoutError) else error)
            if fault is not None:
                self._on_outcome(fault, call.deadline - self._timeout_seconds)

    async def aclose(self) -> None:
        """Close the connection. Calls that still wait fail with `StoreUnavailable`."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self.fail(self.take_waiting(), ConnectionError())
        self.disconnect(ConnectionError())
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            self._connecting = None


class ServerQueues(NamedTuple):
    """The queues to one server. Two connections take turns: while the calls of one are at the server, those of the
    other are collected. Durable calls have a third, since waiting for replicas blocks a connection."""

    first: CommandQueue
    second: CommandQueue
    durable: CommandQueue | None

    def choose(self, *, durable: bool) -> CommandQueue:
        """Choose the queue for a call. All calls of one turn of the event loop take the same one, so an index is
        written before its record."""
        if durable and self.durable is not None:
            return self.durable
        first, second = self.first, self.second
        if first.is_flush_scheduled or second.is_flush_scheduled:
            return first if first.is_flush_scheduled else second
        queue, other = (first, second) if first.load <= second.load else (second, first)
        if not queue.is_connected and other.is_connected:
            # No call is to fail for want of the second connection while the first one works.
            queue.ensure_connected()
            return other
        return queue

    def all(self) -> list[CommandQueue]:
        return [queue for queue in self if queue is not None]


class QueueFactory(Protocol):
    """Makes a `CommandQueue`; the client has bound the other arguments."""

    def __call__(
        self,
        server: Server,
        connect: Any,
        *,
        on_disconnect: Callable[[CommandQueue], None],
        replicas: int = 0,
        **others: Any,
    ) -> CommandQueue: ...
