"""Routes from a key to the server that has it: the only server, the primary that the sentinels name, or the node of a
Cluster that serves the key's slot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

from hiredis import ProtocolError
from msgspec import structs

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import Address, Topology
from gatekeeper.store.command import Command, server_command
from gatekeeper.store.connection import PendingCall, Server, StoreConnection, connect
from gatekeeper.store.primaries import Primaries
from gatekeeper.store.queue import CommandQueue, QueueFactory, ServerQueues
from gatekeeper.store.subscription import Subscription

_log = logging.getLogger("gatekeeper")

# A sentinel or node that is slower than this is passed over.
_QUERY_SECONDS: Final = 0.5
_PAUSE_BETWEEN_REFRESHES_SECONDS: Final = 0.1
_chance: Final = random.Random()  # noqa: S311 - no secret
# With so many random slots, even a primary with a single slot is hit with a probability of 98 %.
_SLOTS: Final = 16_384
_KEYS_TO_TRY: Final = 4 * _SLOTS


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

    async def subscribe(self, channel: str) -> Subscription:
        """Open a connection to any server, which receives what is published on `channel`. A Cluster delivers a message
        at all of its nodes. Raises `OSError` or `StoreUnavailable`."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                server = _chance.choice(await self.primaries()).server
                deadline = asyncio.get_running_loop().time() + self._timeout_seconds
                connection = await self._connect(server, partial(Subscription, channel), deadline)
        except BaseException:
            self.refresh_soon()
            raise
        assert isinstance(connection, Subscription)  # noqa: S101 - for the type checker
        connection.begin()
        return connection

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


class _Election(NamedTuple):
    """An election as a sentinel reports it: its number, which only grows (the configuration epoch), and its winner."""

    epoch: int
    primary: Server


class SentinelRoute(RefreshedRoute):
    """The route to the primary that the sentinels name. Where they differ, the one of the latest election counts; one
    that is older than an election which was followed before never does."""

    # A primary that was replaced while it was cut off still replies (docs/attacks.md, R12).
    refresh_seconds = 0.5

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        # The newest election that was followed, and the sentinels that did not reply in time when they were asked last.
        self._elected: _Election | None = None
        self._silent: set[CommandQueue] = set()
        self._knows_newer = False
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
        await self._refresh()
        assert self._elected is not None  # noqa: S101 - for the type checker
        return await super()._connect(self._elected.primary, make, deadline)

    async def _elections(self) -> list[_Election]:
        """Ask all sentinels at once. Wait half a second at most, and not for those that were silent the last time once
        more than half have replied. Raises `StoreUnavailable` where none names a primary."""
        asked = {asyncio.ensure_future(self._election(queue)): queue for queue in self._sentinels}
        found: list[_Election] = []
        fault = StoreUnavailable("session store failed: no sentinel names a primary", kind="connection")
        waiting = set(asked)
        try:
            while waiting:
                if len(found) > len(asked) // 2 and all(asked[each] in self._silent for each in waiting):
                    break
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    try:
                        found.append(each.result())
                    except StoreUnavailable as error:
                        self._silent.add(asked[each])
                        fault = StoreUnavailable(f"{error}: no sentinel names a primary", kind="connection")
                    except (ValueError, KeyError, AttributeError):
                        pass
                    else:
                        self._silent.discard(asked[each])
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if not found:
            raise fault
        return found

    async def _election(self, sentinel: CommandQueue) -> _Election:
        """The newest election that a sentinel knows. Raises `StoreUnavailable`, `ValueError`, `KeyError` or
        `AttributeError`."""
        service = self._address.service
        described = await self._query(sentinel, server_command("SENTINEL", "MASTER", service))
        election, in_progress = _parse_primary(described)
        if in_progress:
            # Who leads a failover gives it the number of the new election before the address that was elected.
            command = server_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            address = await self._query(sentinel, command)
            if isinstance(address, list) and len(address) == 2 and all(isinstance(each, bytes) for each in address):
                return election._replace(primary=Server(address[0].decode(), int(address[1])))
        return election

    async def _refresh(self) -> None:
        elections = await self._elections()
        newest = max(each.epoch for each in elections)
        winners = [each for each in elections if each.epoch == newest]
        followed = self._elected
        if followed is not None and (newest < followed.epoch or followed in winners):
            self._say_if_older(newest < followed.epoch, newest)
            return
        self._say_if_older(False, newest)
        self._elected = winners[0]
        if followed is not None:
            for queue in self.queues():
                queue.disconnect(ConnectionAbortedError())

    def _say_if_older(self, is_older: bool, newest: int) -> None:
        """Log once that every sentinel that replies knows older elections only."""
        if is_older and not self._knows_newer and self._elected is not None:
            _log.warning(
                "session store keeps its primary %s: the sentinels know election %d at most, and %d was followed",
                self._elected.primary,
                newest,
                self._elected.epoch,
            )
        self._knows_newer = is_older

    async def aclose(self) -> None:
        await super().aclose()
        for queue in self._sentinels:
            await queue.aclose()


def _parse_primary(reply: Any) -> tuple[_Election, bool]:
    """The election in a reply to SENTINEL MASTER, and whether this sentinel leads a failover. Raises `ValueError`,
    `KeyError` or `AttributeError`."""
    if not isinstance(reply, list):
        raise ValueError("no primary")  # noqa: TRY004 - the caller handles any malformed reply alike
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    election = _Election(int(fields[b"config-epoch"]), Server(fields[b"ip"].decode(), int(fields[b"port"])))
    return election, b"failover_in_progress" in fields.get(b"flags", b"")


def _ignored(*_: Any) -> None:
    """Ignore events of a queue for topology queries: the circuit breaker counts calls for sessions alone."""


class ClusterRoute(RefreshedRoute):
    """The route to the node that serves a key's slot. A node that serves it no longer names the one that does, and the
    map of slots follows."""

    ordered = False
    # Only for nodes that fail silently: one that has lost a slot says so at the next call (MOVED).
    refresh_seconds = 2.0

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._slots: list[Server | None] = [None] * _SLOTS
        self._nodes: list[Server] = []
        self._primaries: set[Server] = set()
        # Nodes that did not reply to the last query.
        self._failed: set[Server] = set()
        # Apart from the calls for sessions, which have more time: a query that times out closes its connection.
        self._query_queues: dict[Server, CommandQueue] = {}

    def _server_of(self, key: bytes) -> Server:
        return self._slots[_slot(key)] or self._any_node()

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
            # It may be a replica, which is asked about the slots and for nothing else.
            connect_to = partial(connect, server, self._address.options)
            queue = self._make_queue(server, connect_to, on_disconnect=_ignored, on_outcome=_ignored)
            self._query_queues[server] = queue
        return queue

    def _apply_slots(self, replier: Server, reply: Any) -> None:
        slots: list[Server | None] = [None] * _SLOTS
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


def _slot(key: bytes) -> int:
    """Return the slot of a key (Redis Cluster specification, "Key distribution model" and "Hash tags")."""
    start = key.find(b"{") + 1
    if start and (end := key.find(b"}", start)) > start:
        key = key[start:end]
    return crc_hqx(key, 0) % _SLOTS
