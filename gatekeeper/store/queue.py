"""The calls to one server of the store, in the order in which they were made, over one connection that is made anew
when it is lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from hiredis import ReplyError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.connection import (
    IN_FLIGHT,
    RECONNECT_SECONDS,
    WAITING,
    PendingCall,
    Server,
    StoreConnection,
    sweep_seconds,
)

# Of STORE_TIMEOUT, for the replicas: calls that come meanwhile wait for this batch, and then for their own.
_REPLICAS_SHARE: Final = 0.5
# So many calls of one turn of the event loop leave at once. Fewer cost more writes, more leave the server idle.
_PORTION: Final = 8


class CommandQueue:
    """Bounded in calls under way and waiting, and in time by each call's deadline.

    `connect` makes the connection; `refused` is given every call that got an error reply; `told` hears how calls went,
    and when those began that failed; `lost` hears that the connection broke or could not be made. With `replicas`, no
    call is answered before so many replicas have what was written.
    """

    def __init__(
        self,
        server: Server,
        connect: Callable[[Callable[[], StoreConnection], float], Awaitable[StoreConnection]],
        *,
        timeout_seconds: float,
        refused: Callable[[CommandQueue, PendingCall, ReplyError], None],
        told: Callable[[StoreUnavailable | None, float], None],
        lost: Callable[[CommandQueue], None],
        replicas: int = 0,
    ) -> None:
        self.server = server
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._refused = refused
        self._told = told
        self._lost = lost
        self._replicas = replicas
        self._waiting: deque[PendingCall] = deque()
        # Refused and sent again: before all others, as they were made before them.
        self._again: deque[PendingCall] = deque()
        self._held: list[tuple[PendingCall, Any]] = []
        self._wire: StoreConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._next_attempt = 0.0
        # Whether the read under way holds a refusal.
        self._refusals = False
        # Whether calls of this turn of the event loop wait for their write.
        self.is_woken = False
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._again)

    @property
    def load(self) -> int:
        return self.waiting + self.in_flight

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._wire is not None

    def open(self) -> None:
        """Makes one, if there is none, for calls to come."""
        if self._wire is None and self._connecting is None:
            self._connecting = asyncio.create_task(self._reconnect())

    @property
    def is_idle(self) -> bool:
        return self._wire is None and self._connecting is None and not self.waiting

    @property
    def in_flight(self) -> int:
        return len(self._wire.pending) if self._wire is not None else 0

    def submit(self, call: PendingCall) -> None:
        if len(self._waiting) >= WAITING:
            self.fail([call], StoreUnavailable("too many calls wait for the session store", kind="timeout"))
            return
        self._waiting.append(call)
        if not self.is_woken:
            self._wake(call)
        elif len(self._waiting) >= _PORTION and self._wire is not None:
            # The server is to have something to do while more of this turn comes.
            self._flush()
            self.is_woken = True

    def again(self, call: PendingCall) -> None:
        """Sends a call once more that certainly had no effect."""
        self._again.append(call)
        if not self.is_woken:
            self._wake(call)

    def brings(self, source: str | None) -> bool:
        """Whether a call that is sent again takes this script along."""
        return any(call.source is source and call.command[0] == "EVAL" for call in self._again)

    def _wake(self, call: PendingCall) -> None:
        self.is_woken = True
        loop = asyncio.get_running_loop()
        # A turn later: who asks two things at once does so by `asyncio.gather`, whose tasks begin one turn later.
        loop.call_soon(loop.call_soon, self._flush)
        if self._sweeper is None:
            self._sweeper = loop.call_later(sweep_seconds(self._timeout_seconds), self._sweep, loop)

    def _flush(self) -> None:
        self.is_woken = False
        wire = self._wire
        if wire is None:
            if self._waiting or self._again:
                self.open()
            return
        if wire.retired and not wire.pending:
            wire.close(ConnectionAbortedError())
            return
        room = IN_FLIGHT - len(wire.pending)
        if wire.retired or wire.paused or (self._replicas and wire.pending):
            return
        batch: list[PendingCall] = []
        for queue in (self._again, self._waiting):
            while queue and len(batch) < room:
                call = queue.popleft()
                if not call.reply.done():
                    batch.append(call)
        if batch:
            self._write(wire, batch)

    def _write(self, wire: StoreConnection, batch: list[PendingCall]) -> None:
        if not self._replicas:
            wire.write(batch)
            return
        loop = asyncio.get_running_loop()
        # Nobody waits for its reply: it is told by its name.
        nobody = loop.create_future()
        nobody.cancel()
        deadline = min(call.deadline for call in batch)
        seconds = min(self._timeout_seconds * _REPLICAS_SHARE, (deadline - loop.time()) * 0.8)
        wait = PendingCall(("WAIT", self._replicas, max(1, int(seconds * 1000))), nobody, deadline)
        wire.write([*batch, wait])

    # What the wire tells

    def answered(self, call: PendingCall, reply: Any) -> None:
        if self._replicas and self._wire is not None:
            self._hold(call, reply)
        elif not call.reply.done():
            call.reply.set_result(reply)

    def _hold(self, call: PendingCall, reply: Any) -> None:
        if call.command[0] != "WAIT":
            self._held.append((call, reply))
            return
        held, self._held = self._held, []
        if isinstance(reply, int) and reply >= self._replicas:
            for answered, answer in held:
                if not answered.reply.done():
                    answered.reply.set_result(answer)
        else:
            fault = StoreUnavailable("the session store failed: refused (too few replicas have it)", kind="refused")
            self.fail([answered for answered, _ in held], fault)

    def refused(self, call: PendingCall, error: ReplyError) -> None:
        if self._wire is None:
            # It is a part of a connection's beginning.
            if not call.reply.done():
                call.reply.set_exception(error)
        elif call.command[0] == "WAIT":
            held, self._held = self._held, []
            self.fail([answered for answered, _ in held], error)
        else:
            self._refusals = True
            self._refused(self, call, error)

    def read(self) -> None:
        wire = self._wire
        if self._refusals:
            # Not every answer is a sign of health.
            self._refusals = False
        elif wire is not None:
            self._told(None, 0.0)
        if (self._waiting or self._again or (wire is not None and wire.retired)) and not self.is_woken:
            self._flush()

    def writable(self) -> None:
        self._flush()

    def lost(self, wire: StoreConnection, error: BaseException) -> None:
        if wire is not self._wire:
            for call in wire.pending:
                if call is not None and not call.reply.done():
                    call.reply.set_exception(error)
            return
        self._wire = None
        pending = [call for call, _ in self._held]
        self._held.clear()
        pending += [call for call in wire.pending if call is not None]
        self.fail(pending, error)
        self._lost(self)
        if self._waiting or self._again:
            self._flush()

    # Connections and time

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if (pause := self._next_attempt - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._next_attempt = loop.time() + RECONNECT_SECONDS
            deadline = loop.time() + self._timeout_seconds
            async with asyncio.timeout(self._timeout_seconds):
                wire = await self._connect(partial(StoreConnection, self), deadline)
            if wire.closed:
                raise ConnectionResetError  # noqa: TRY301 - as if it had never been made
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for a connection that is not there
            self._connecting = None
            self.fail(self.hand_over(), error)
            self._lost(self)
        else:
            self._connecting = None
            self._wire = wire
            self._flush()

    def retire(self) -> None:
        """Sends nothing more over this connection: what is pending is still answered, then there is another."""
        if (wire := self._wire) is not None:
            wire.retired = True
            if not wire.pending:
                wire.close(ConnectionAbortedError())

    def hand_over(self) -> list[PendingCall]:
        """Calls that wait, for another lane to send."""
        calls = [*self._again, *self._waiting]
        self._again.clear()
        self._waiting.clear()
        return calls

    def drop(self, error: BaseException) -> None:
        """Leaves the connection, if there is one: what is pending on it fails."""
        if self._wire is not None:
            self._wire.close(error)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        now = loop.time()
        for name in ("_again", "_waiting"):
            queue: deque[PendingCall] = getattr(self, name)
            if any(call.deadline <= now for call in queue):
                self.fail([call for call in queue if call.deadline <= now], TimeoutError())
                setattr(self, name, deque(call for call in queue if call.deadline > now))
        if self._wire is not None and self._wire.overdue(now):
            self._wire.close(TimeoutError())
        if self._waiting or self._again or self.in_flight:
            self._sweeper = loop.call_later(sweep_seconds(self._timeout_seconds), self._sweep, loop)

    def fail(self, calls: list[PendingCall], error: BaseException) -> None:
        """Tells the callers, who may have left."""
        for call in calls:
            told = call.fail(call.fault if call.fault is not None and isinstance(error, TimeoutError) else error)
            if told is not None:
                self._told(told, call.deadline - self._timeout_seconds)

    async def aclose(self) -> None:
        """Lets the connection go. Who still waits gets `StoreUnavailable`."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.fail(self.hand_over(), ConnectionError())
        self.drop(ConnectionError())
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            self._connecting = None
