"""The route from a key to the server that has it: of a single server, and the base of the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from hiredis import ProtocolError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import Address
from gatekeeper.store.command import Command
from gatekeeper.store.connection import PendingCall, Server, StoreConnection, connect
from gatekeeper.store.primaries import Primaries
from gatekeeper.store.queue import CommandQueue

# A sentinel or node that is slower than this is passed over.
_QUERY_SECONDS: Final = 0.5
_PAUSE_BETWEEN_REFRESHES_SECONDS: Final = 0.1


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


class StoreRoute:
    """The route to a single server, and the base of the others."""

    # True where all calls share a connection, so that the order of the calls alone puts indexes before records.
    ordered = True

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        self._address = address
        self._make_queue = make_queue
        self._timeout_seconds = timeout_seconds
        self._replicas = replicas
        self._servers: dict[Server, ServerQueues] = {}
        self.met: Final = Primaries()

    def queue_for(self, key: bytes, *, durable: bool) -> CommandQueue:
        """The queue to the server that has the key."""
        server = self._server_of(key)
        queues = self._servers.get(server) or self._queues_to(server)
        return queues.choose(durable=durable)

    def queues(self) -> list[CommandQueue]:
        """All queues to servers that hold sessions."""
        return [queue for queues in self._servers.values() for queue in queues.all()]

    async def primaries(self) -> list[CommandQueue]:
        """One queue to every server that holds sessions. Raises `StoreUnavailable`."""
        return [self.queue_for(b"", durable=False)]

    async def keys_on_primaries(self, key: bytes, current: Sequence[bytes]) -> list[bytes]:
        """See `StoreClient.keys_on_primaries`."""
        return [key]

    def drop_connections(self, key: bytes) -> None:
        """Close the connections to the server of a key, over one of which came a reply to another call."""
        for queue in self._queues_to(self._server_of(key)).all():
            queue.disconnect(ProtocolError())

    def redirect(self, queue: CommandQueue, call: PendingCall, text: str) -> None:
        """Send a call to the node that an error reply (MOVED, ASK) names."""
        call.fail(
            StoreUnavailable(
                "session store failed: refused (it is a cluster: use a redis+cluster:// URL)", kind="refused"
            )
        )

    def refresh_soon(self) -> None:
        """Look soon for changes of the topology. A single server has none."""

    def _server_of(self, key: bytes) -> Server:
        return self._address.servers[0]

    def _queues_to(self, server: Server) -> ServerQueues:
        if (queues := self._servers.get(server)) is not None:
            return queues
        connect_to = partial(self._connect, server)
        first, second = (self._make_queue(server, connect_to, on_disconnect=self._disconnected) for _ in range(2))
        durable = None
        if self._replicas:
            durable = self._make_queue(server, connect_to, on_disconnect=self._disconnected, replicas=self._replicas)
        queues = self._servers[server] = ServerQueues(first, second, durable)
        return queues

    async def _connect(self, server: Server, make: Callable[[], StoreConnection], deadline: float) -> StoreConnection:
        connection = await connect(server, self._address.options, make, deadline)
        try:
            await self.met.greet(server, connection, deadline)
        except BaseException:
            connection.close(ConnectionAbortedError())
            raise
        return connection

    def _disconnected(self, queue: CommandQueue) -> None:
        self.refresh_soon()

    async def aclose(self) -> None:
        for queue in self.queues():
            await queue.aclose()


class RefreshedRoute(StoreRoute):
    """A route in a topology that may change: it is looked up periodically, and soon after a failure."""

    refresh_seconds: ClassVar[float]

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._refresher: asyncio.Task[None] | None = None
        self._refresh_wanted: asyncio.Event | None = None

    def queue_for(self, key: bytes, *, durable: bool) -> CommandQueue:
        if self._refresher is None:
            self._refresh_wanted = asyncio.Event()
            self._refresher = asyncio.create_task(self._refresh_periodically(self._refresh_wanted))
        return super().queue_for(key, durable=durable)

    def refresh_soon(self) -> None:
        if self._refresh_wanted is not None:
            self._refresh_wanted.set()

    async def _refresh(self) -> None:
        """Look up the topology. Raises `StoreUnavailable`."""
        raise NotImplementedError

    async def _refresh_periodically(self, wanted: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.refresh_seconds):
                    await wanted.wait()
            wanted.clear()
            # Tried again later. A fault that matters is reported by the calls themselves.
            with contextlib.suppress(StoreUnavailable):
                await self._refresh()
            await asyncio.sleep(_PAUSE_BETWEEN_REFRESHES_SECONDS)

    async def _query(self, queue: CommandQueue, command: Command) -> Any:
        """The reply to a command about the topology, within half a second. Raises `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        seconds = min(self._timeout_seconds, _QUERY_SECONDS)
        reply: asyncio.Future[Any] = loop.create_future()
        queue.submit(PendingCall(command, reply, loop.time() + seconds))
        return await reply

    async def aclose(self) -> None:
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
            self._refresher = None
        await super().aclose()


def ignored(*_: Any) -> None:
    """Ignore events of a queue for topology queries: the circuit breaker counts calls for sessions alone."""
