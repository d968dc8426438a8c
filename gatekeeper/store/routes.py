"""Routes from a key to the server that has it: the only server, the primary that the sentinels name, or the node of a
Cluster that serves the key's slot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import Address, Topology
from gatekeeper.store.command import server_command
from gatekeeper.store.connection import PendingCall, Server, connect
from gatekeeper.store.queue import CommandQueue
from gatekeeper.store.route import QueueFactory, RefreshedRoute, StoreRoute, ignored
from gatekeeper.store.sentinel import SentinelRoute

# With so many random slots, even a primary with a single slot is hit with a probability of 98 %.
_KEYS_TO_TRY: Final = 4 * REDIS_CLUSTER_HASH_SLOTS


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
            # It may be a replica, which is asked about the slots and for nothing else.
            connect_to = partial(connect, server, self._address.options)
            queue = self._make_queue(server, connect_to, on_disconnect=ignored, on_outcome=ignored)
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
