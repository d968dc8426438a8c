"""Routes from a key to the server that has it: the only server, the primary that the sentinels name, or the node of a
Cluster that serves the key's slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from hiredis import ProtocolError
from msgspec import structs
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import Address, Topology
from gatekeeper.store.command import Command, server_command
from gatekeeper.store.connection import PendingCall, Server, StoreConnection, connect
from gatekeeper.store.queue import CommandQueue

# A sentinel or node that is slower than this is passed over.
_QUERY_SECONDS: Final = 0.5
_PAUSE_BETWEEN_REFRESHES_SECONDS: Final = 0.1
# With so many random slots, even a primary with a single slot is hit with a probability of 98 %.
_KEYS_TO_TRY: Final = 4 * REDIS_CLUSTER_HASH_SLOTS


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
        return await connect(server, self._address.options, make, deadline)

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


class SentinelRoute(RefreshedRoute):
    """The route to the primary that the sentinels name. Where they differ, the one of the latest election counts."""

    # A primary that was replaced while it was cut off still replies (docs/attacks.md, R12).
    refresh_seconds = 0.5

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._primary: Server | None = None
        self._sentinel_options = structs.replace(
            address.options, database=0, must_be_primary=False, password_is_optional=True
        )
        self._sentinels = [
            make_queue(server, partial(self._connect_sentinel, server), on_disconnect=_ignored, on_outcome=_ignored)
            for server in address.servers
        ]

    def _server_of(self, key: bytes) -> Server:
        # Stands for the primary, at whatever address it is.
        return Server(host=self._address.service)

    async def _connect_sentinel(
        self, server: Server, make: Callable[[], StoreConnection], deadline: float
    ) -> StoreConnection:
        return await connect(server, self._sentinel_options, make, deadline)

    async def _connect(self, server: Server, make: Callable[[], StoreConnection], deadline: float) -> StoreConnection:
        primary = await self._find_primary()
        self._follow(primary)
        return await connect(primary, self._address.options, make, deadline)

    async def _find_primary(self) -> Server:
        """Ask all sentinels at once. Returns as soon as more than half of them have named a primary."""
        command = server_command("SENTINEL", "MASTER", self._address.service)
        queries = [asyncio.ensure_future(self._query(queue, command)) for queue in self._sentinels]
        named: list[tuple[int, Server]] = []
        fault = StoreUnavailable("session store failed: no sentinel names a primary", kind="connection")
        try:
            for query in asyncio.as_completed(queries):
                try:
                    named.append(_parse_primary(await query))
                except StoreUnavailable as error:
                    fault = StoreUnavailable(f"{error}: no sentinel names a primary", kind="connection")
                except (ValueError, KeyError):
                    pass
                if len(named) > len(queries) // 2:
                    break
        finally:
            for each in queries:
                each.cancel()
            await asyncio.gather(*queries, return_exceptions=True)
        if not named:
            raise fault
        return max(named, key=lambda pair: pair[0])[1]

    def _follow(self, primary: Server) -> None:
        if self._primary not in (None, primary):
            for queue in self.queues():
                queue.disconnect(ConnectionAbortedError())
        self._primary = primary

    async def _refresh(self) -> None:
        self._follow(await self._find_primary())

    async def aclose(self) -> None:
        await super().aclose()
        for queue in self._sentinels:
            await queue.aclose()


def _ignored(*_: Any) -> None:
    """Ignore events of a queue for topology queries: the circuit breaker counts calls for sessions alone."""


def _parse_primary(reply: Any) -> tuple[int, Server]:
    """The epoch of the election and the address, from a reply to SENTINEL MASTER. Raises `ValueError` or `KeyError`."""
    if not isinstance(reply, list):
        raise ValueError("no primary")  # noqa: TRY004 - the caller handles any malformed reply alike
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    return int(fields[b"config-epoch"]), Server(fields[b"ip"].decode(), int(fields[b"port"]))


class ClusterRoute(RefreshedRoute):
    """The route to the node that serves a key's slot. A node that serves it no longer names the one that does, and the
    map of slots follows."""

    ordered = False
    # Only for nodes that fail silently: one that has lost a slot says so at the next call (MOVED).
    refresh_seconds = 2.0

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: list[Server] = []
        self._primaries: set[Server] = set()
        # Nodes that did not reply to the last query.
        self._failed: set[Server] = set()
        # Apart from the calls for sessions, which have more time: a query that times out closes its connection.
        self._query_queues: dict[Server, CommandQueue] = {}

    def _server_of(self, key: bytes) -> Server:
        return self._slots[key_slot(key)] or self._any_node()

    def _known_nodes(self) -> list[Server]:
        """All nodes, those that replied last time first."""
        known = dict.fromkeys([*self._nodes, *self._address.servers])
        return sorted(known, key=lambda server: server in self._failed)

    def _any_node(self) -> Server:
        """A node to ask for a slot that has no known server: any node redirects the call."""
        self.refresh_soon()
        return self._known_nodes()[0]

    async def primaries(self) -> list[CommandQueue]:
        if None in self._slots:
            await self._refresh()
        servers = dict.fromkeys(server for server in self._slots if server is not None)
        return [self._queues_to(server).choose(durable=False) for server in servers]

    async def keys_on_primaries(self, key: bytes, current: Sequence[bytes]) -> list[bytes]:
        if not self._primaries:
            await self._refresh()
        found: dict[Server, bytes] = {}
        for each in (key, *current):
            found.setdefault(self._server_of(each), each)
        lacking = self._primaries - set(found)
        for number in range(_KEYS_TO_TRY if lacking else 0):
            candidate = key + b":{%d}" % number
            if (server := self._server_of(candidate)) in lacking:
                found[server] = candidate
                lacking.remove(server)
                if not lacking:
                    break
        return list(found.values())

    def redirect(self, queue: CommandQueue, call: PendingCall, text: str) -> None:
        # MOVED 3999 127.0.0.1:6381
        code, slot, address = text.split(" ")[:3]
        host, _, port = address.rpartition(":")
        # An empty host means the host of the node that replied (CLUSTER SLOTS, "Nodes with an unknown endpoint").
        server = Server(queue.server.host if host in ("", "?") else host, int(port))
        if code == "MOVED":
            self._slots[int(slot)] = server
            self.refresh_soon()
        call.asking = code == "ASK"
        self._queues_to(server).choose(durable=call.command.durable).resubmit(call)

    async def _refresh(self) -> None:
        command = server_command("CLUSTER", "SLOTS")
        for server in self._known_nodes():
            try:
                self._apply_slots(server, await self._query(self._query_queue(server), command))
            except (StoreUnavailable, ValueError, TypeError, LookupError, AttributeError):
                self._failed.add(server)
            else:
                self._failed.discard(server)
                return
        raise StoreUnavailable("session store failed: no node replies to CLUSTER SLOTS", kind="connection")

    def _query_queue(self, server: Server) -> CommandQueue:
        if (queue := self._query_queues.get(server)) is None:
            connect_to = partial(self._connect, server)
            queue = self._make_queue(server, connect_to, on_disconnect=_ignored, on_outcome=_ignored)
            self._query_queues[server] = queue
        return queue

    def _apply_slots(self, replier: Server, reply: Any) -> None:
        slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[Server, None] = {}
        for first, last, *servers in reply:
            parsed = [_parse_node(replier, *node) for node in servers]
            slots[first : last + 1] = [parsed[0]] * (last + 1 - first)
            nodes.update(dict.fromkeys(parsed))
        if not nodes:
            raise ValueError("no slots")
        self._slots, self._nodes = slots, list(nodes)
        self._primaries = {server for server in slots if server is not None}
        self._leave_all_but(self._primaries)

    def _leave_all_but(self, primaries: set[Server]) -> None:
        """Retire the queues to nodes that serve no slot any more. Their waiting calls go to the nodes that do."""
        for server in [server for server in self._servers if server not in primaries]:
            queues = self._servers[server].all()
            for call in [call for queue in queues for call in queue.take_waiting()]:
                self.queue_for(call.command.key, durable=call.command.durable).resubmit(call)
            for queue in queues:
                queue.retire()
            if all(queue.is_idle for queue in queues):
                del self._servers[server]

    async def aclose(self) -> None:
        await super().aclose()
        for queue in self._query_queues.values():
            await queue.aclose()


def _parse_node(replier: Server, host: bytes | None, port: int, _id: bytes = b"", metadata: Any = ()) -> Server:
    """The address of a node in the reply to CLUSTER SLOTS. A node without a host has that of the node that replied; one
    with the host `?` has its IP address in the metadata."""
    if host == b"?":
        host = dict(zip(metadata[::2], metadata[1::2], strict=False)).get(b"ip")
    return Server(host.decode() if host else replier.host, port)


def make_route(address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> StoreRoute:
    routes: dict[Topology, type[StoreRoute]] = {
        "server": StoreRoute,
        "sentinel": SentinelRoute,
        "cluster": ClusterRoute,
    }
    return routes[address.topology](address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
