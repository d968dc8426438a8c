"""Which server of the store a call goes to: the one there is, the master that sentinels name, or the node of a slot."""

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
from gatekeeper.store.address import Address
from gatekeeper.store.connection import PendingCall, Server, StoreConnection, connect
from gatekeeper.store.queue import CommandQueue

# How long it is waited for who tells where to go.
_ASK_SECONDS: Final = 0.5
_SOON_SECONDS: Final = 0.1
# Of a primary with one slot alone, a key is found among so many, most likely.
_NUMBERS: Final = 4 * REDIS_CLUSTER_HASH_SLOTS


class ServerQueues(NamedTuple):
    """To one server. While the calls of one lane are with the store, those of the other are made: with one alone, each
    would wait for the other. A call that waits for replicas holds up what comes after it, so such have a third."""

    first: CommandQueue
    second: CommandQueue
    durable: CommandQueue | None

    def pick(self, *, durable: bool) -> CommandQueue:
        """All calls of one turn of the event loop take one lane: an index comes before its record."""
        if durable and self.durable is not None:
            return self.durable
        first, second = self.first, self.second
        if first.is_woken or second.is_woken:
            return first if first.is_woken else second
        lane, other = (first, second) if first.load <= second.load else (second, first)
        if not lane.is_open and other.is_open:
            # Where one is served, none is to fail because the other connection is not there yet, or not there again.
            lane.open()
            return other
        return lane

    def all(self) -> list[CommandQueue]:
        return [lane for lane in self if lane is not None]


class QueueFactory(Protocol):
    """Makes a lane, but for what its route knows."""

    def __call__(
        self, server: Server, connect: Any, *, lost: Callable[[CommandQueue], None], replicas: int = 0, **others: Any
    ) -> CommandQueue: ...


class StoreRoute:
    """Of one server. The other routes differ in what they override."""

    # Whether all calls take one connection: then indexes are before records by the order of the calls alone.
    ordered = True

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        self._address = address
        self._make_lane = make_queue
        self._timeout_seconds = timeout_seconds
        self._replicas = replicas
        self._servers: dict[Server, ServerQueues] = {}

    def _lanes_to(self, server: Server) -> ServerQueues:
        """The lanes to a server, made when first asked for."""
        if (lanes := self._servers.get(server)) is not None:
            return lanes
        connect_to = partial(self._connect, server)
        first, second = (self._make_lane(server, connect_to, lost=self._lost) for _ in range(2))
        durable = None
        if self._replicas:
            durable = self._make_lane(server, connect_to, lost=self._lost, replicas=self._replicas)
        lanes = self._servers[server] = ServerQueues(first, second, durable)
        return lanes

    async def _connect(self, server: Server, make: Callable[[], StoreConnection], deadline: float) -> StoreConnection:
        return await connect(server, self._address.login, make, deadline)

    def lane(self, key: bytes, *, durable: bool) -> CommandQueue:
        """That leads to the key."""
        server = self._server_of(key)
        lanes = self._servers.get(server) or self._lanes_to(server)
        return lanes.pick(durable=durable)

    def drop_connections(self, key: bytes) -> None:
        """Leaves the connections to the server of a key: over one of them came what was not asked for."""
        for lane in self._lanes_to(self._server_of(key)).all():
            lane.drop(ProtocolError())

    def _server_of(self, key: bytes) -> Server:
        return self._address.servers[0]

    def lanes(self) -> list[CommandQueue]:
        """All there are."""
        return [lane for lanes in self._servers.values() for lane in lanes.all()]

    async def masters(self) -> list[CommandQueue]:
        """A lane to every server that has sessions. Raises `StoreUnavailable`."""
        return [self.lane(b"", durable=False)]

    async def key_on_each(self, key: bytes, held: Sequence[bytes]) -> list[bytes]:
        """As `StoreClient.key_on_each`."""
        return [key]

    def redirect(self, lane: CommandQueue, call: PendingCall, text: str) -> None:
        """Sends a call where its server says, in the text of an error reply."""
        call.fail(StoreUnavailable("the session store is a cluster: redis+cluster://", kind="refused"))

    def look_soon(self) -> None:
        """Something is not as it was."""

    def _lost(self, lane: CommandQueue) -> None:
        """A connection broke, or could not be made."""
        self.look_soon()

    async def aclose(self) -> None:
        for lane in self.lanes():
            await lane.aclose()


class RefreshedRoute(StoreRoute):
    """A route that somebody else may change: it is looked at from time to time, and soon after a failure."""

    look_seconds: ClassVar[float]

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._watch: asyncio.Task[None] | None = None
        self._alarm: asyncio.Event | None = None

    def lane(self, key: bytes, *, durable: bool) -> CommandQueue:
        if self._watch is None:
            self._alarm = asyncio.Event()
            self._watch = asyncio.create_task(self._keep_looking(self._alarm))
        return super().lane(key, durable=durable)

    async def _look(self) -> None:
        """Finds out who is master of what. Raises `StoreUnavailable`."""
        raise NotImplementedError

    async def _keep_looking(self, alarm: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.look_seconds):
                    await alarm.wait()
            alarm.clear()
            # What nobody answers is looked at again: the calls themselves tell that there is a fault.
            with contextlib.suppress(StoreUnavailable):
                await self._look()
            await asyncio.sleep(_SOON_SECONDS)

    def look_soon(self) -> None:
        if self._alarm is not None:
            self._alarm.set()

    async def _ask(self, lane: CommandQueue, *command: Any) -> Any:
        """One answer, soon or never. Raises `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        seconds = min(self._timeout_seconds, _ASK_SECONDS)
        reply: asyncio.Future[Any] = loop.create_future()
        lane.submit(PendingCall(command, reply, loop.time() + seconds))
        return await reply

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await super().aclose()


class SentinelRoute(RefreshedRoute):
    """To the master that the sentinels name: the newest that any of them knows, by the epoch of its election."""

    # A master that was replaced while it was cut off answers as before (R12).
    look_seconds = 0.5

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._master: Server | None = None
        self._login = structs.replace(address.login, database=0, must_be_master=False, password_is_optional=True)
        self._sentinels = [
            make_queue(server, partial(self._connect_sentinel, server), lost=_unheard, told=_unheard)
            for server in address.servers
        ]

    def _server_of(self, key: bytes) -> Server:
        # Stands for the master, whoever that is.
        return Server(host=self._address.service)

    async def _connect_sentinel(
        self, server: Server, make: Callable[[], StoreConnection], deadline: float
    ) -> StoreConnection:
        return await connect(server, self._login, make, deadline)

    async def _connect(self, server: Server, make: Callable[[], StoreConnection], deadline: float) -> StoreConnection:
        master = await self._find()
        self._follow(master)
        return await connect(master, self._address.login, make, deadline)

    async def _find(self) -> Server:
        """The master of now. Does not wait for sentinels once more than half of them have told."""
        asked = [
            asyncio.ensure_future(self._ask(lane, "SENTINEL", "MASTER", self._address.service))
            for lane in self._sentinels
        ]
        told: list[tuple[int, Server]] = []
        fault = StoreUnavailable("the session store failed: no sentinel knows its master", kind="connection")
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    told.append(_named_master(await answer))
                except StoreUnavailable as error:
                    fault = StoreUnavailable(f"{error}: no sentinel names a master", kind="connection")
                except (ValueError, KeyError):
                    pass
                if len(told) > len(asked) // 2:
                    break
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not told:
            raise fault
        return max(told, key=lambda named: named[0])[1]

    def _follow(self, master: Server) -> None:
        if self._master not in (None, master):
            for lane in self.lanes():
                lane.drop(ConnectionAbortedError())
        self._master = master

    async def _look(self) -> None:
        self._follow(await self._find())

    async def aclose(self) -> None:
        await super().aclose()
        for lane in self._sentinels:
            await lane.aclose()


def _unheard(*_: Any) -> None:
    """Sentinels are asked apart from the calls: what becomes of that is seen in what becomes of those."""


def _named_master(answer: Any) -> tuple[int, Server]:
    """Its epoch and its address. Raises `ValueError` or `KeyError`."""
    if not isinstance(answer, list):
        raise ValueError("no master")  # noqa: TRY004 - an answer of the wrong kind is as good as none
    told = dict(zip(answer[::2], answer[1::2], strict=False))
    return int(told[b"config-epoch"]), Server(told[b"ip"].decode(), int(told[b"port"]))


class ClusterRoute(RefreshedRoute):
    """To the node that has a key's slot. A node that has it no longer tells who has, and the map follows."""

    ordered = False
    # A node that lost a slot says so; this is for nodes that say nothing.
    look_seconds = 2.0

    def __init__(self, address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> None:
        super().__init__(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: list[Server] = []
        self._primaries: set[Server] = set()
        # Nodes that did not answer when they were asked last.
        self._failed: set[Server] = set()
        # A call that waits for the map must not cut off calls for sessions that take longer.
        self._askers: dict[Server, CommandQueue] = {}

    def _server_of(self, key: bytes) -> Server:
        return self._slots[key_slot(key)] or self._anybody()

    def _known(self) -> list[Server]:
        """All nodes, those that answer first."""
        known = dict.fromkeys([*self._nodes, *self._address.servers])
        return sorted(known, key=lambda server: server in self._failed)

    def _anybody(self) -> Server:
        """Any node tells where a slot is."""
        self.look_soon()
        return self._known()[0]

    async def masters(self) -> list[CommandQueue]:
        if None in self._slots:
            await self._look()
        servers = dict.fromkeys(server for server in self._slots if server is not None)
        return [self._lanes_to(server).pick(durable=False) for server in servers]

    async def key_on_each(self, key: bytes, held: Sequence[bytes]) -> list[bytes]:
        if not self._primaries:
            await self._look()
        found: dict[Server, bytes] = {}
        for each in (key, *held):
            found.setdefault(self._server_of(each), each)
        lacking = self._primaries - set(found)
        for number in range(_NUMBERS if lacking else 0):
            candidate = key + b":{%d}" % number
            if (server := self._server_of(candidate)) in lacking:
                found[server] = candidate
                lacking.remove(server)
                if not lacking:
                    break
        return list(found.values())

    def redirect(self, lane: CommandQueue, call: PendingCall, text: str) -> None:
        # MOVED 3999 127.0.0.1:6381
        word, slot, where = text.split(" ")[:3]
        host, _, port = where.rpartition(":")
        # Without a host it is that of the node that tells.
        server = Server(lane.server.host if host in ("", "?") else host, int(port))
        if word == "MOVED":
            self._slots[int(slot)] = server
            self.look_soon()
        call.asking = word == "ASK"
        self._lanes_to(server).pick(durable=call.durable).again(call)

    async def _look(self) -> None:
        for server in self._known():
            try:
                self._learn(server, await self._ask(self._asker(server), "CLUSTER", "SLOTS"))
            except (StoreUnavailable, ValueError, TypeError, LookupError, AttributeError):
                self._failed.add(server)
            else:
                self._failed.discard(server)
                return
        raise StoreUnavailable("the session store failed: no node tells its slots", kind="connection")

    def _asker(self, server: Server) -> CommandQueue:
        if (lane := self._askers.get(server)) is None:
            connect_to = partial(self._connect, server)
            lane = self._askers[server] = self._make_lane(server, connect_to, lost=_unheard, told=_unheard)
        return lane

    def _learn(self, told_by: Server, answer: Any) -> None:
        slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[Server, None] = {}
        for first, last, *having in answer:
            found = [_server(told_by, *node) for node in having]
            slots[first : last + 1] = [found[0]] * (last + 1 - first)
            nodes.update(dict.fromkeys(found))
        if not nodes:
            raise ValueError("no slots")
        self._slots, self._nodes = slots, list(nodes)
        self._primaries = {server for server in slots if server is not None}
        self._leave_others(self._primaries)

    def _leave_others(self, masters: set[Server]) -> None:
        """Of nodes that have no slot any more, calls that wait go to who has theirs."""
        for server in [server for server in self._servers if server not in masters]:
            lanes = self._servers[server].all()
            for call in [call for lane in lanes for call in lane.hand_over()]:
                self.lane(call.key, durable=call.durable).again(call)
            for lane in lanes:
                lane.retire()
            if all(lane.is_idle for lane in lanes):
                del self._servers[server]

    async def aclose(self) -> None:
        await super().aclose()
        for lane in self._askers.values():
            await lane.aclose()


def _server(told_by: Server, host: bytes | None, port: int, _id: bytes = b"", more: Any = ()) -> Server:
    """One of CLUSTER SLOTS. A node without a host has that of the node that tells; one that should announce a name and
    has none (`?`) is known by its address."""
    if host == b"?":
        host = dict(zip(more[::2], more[1::2], strict=False)).get(b"ip")
    return Server(host.decode() if host else told_by.host, port)


def make_route(address: Address, make_queue: QueueFactory, *, timeout_seconds: float, replicas: int) -> StoreRoute:
    kinds: dict[str, type[StoreRoute]] = {"server": StoreRoute, "sentinel": SentinelRoute, "cluster": ClusterRoute}
    return kinds[address.kind](address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
