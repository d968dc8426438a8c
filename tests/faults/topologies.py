"""Stores of several processes on loopback: a master with replicas and sentinels, and a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

_SECONDS = 30.0
_DOWN_AFTER_MS = 500
_NODE_TIMEOUT_MS = 1_000
SLOTS = 16_384


def until(true: Callable[[], Any], what: str, seconds: float = _SECONDS) -> Any:
    """Waits for it; answers what it was."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def free_ports(number: int) -> list[int]:
    """That nobody listens on, nor on the port of a cluster's bus that goes with each."""
    with ExitStack() as stack:
        found: list[int] = []
        candidate = 20_000 + os.getpid() % 9_000
        while len(found) < number:
            candidate += 7
            try:
                for port in (candidate, candidate + 10_000):
                    taken = stack.enter_context(socket.socket())
                    taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(candidate)
        return found


class Node:
    """One server, on a port of loopback."""

    def __init__(self, binary: str, port: int, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.port = port
        self.folder = folder
        self.command = [binary, *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self.client = redis.Redis(port=port, socket_timeout=5, decode_responses=True)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return bool(self.client.ping())

    def is_master(self) -> bool:
        return self.client.execute_command("ROLE")[0] in ("master", b"master")

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()


class Watched:
    """A master, its replicas, and three sentinels."""

    service = "sessions"

    def __init__(self, binary: str, folder: Path, replicas: int) -> None:
        ports = free_ports(1 + replicas + 3)
        keeps_nothing = ("--save", "", "--repl-diskless-sync-delay", "0")
        self.master = Node(binary, ports[0], folder / "0", *keeps_nothing)
        replica_of = ("--replicaof", "127.0.0.1", str(ports[0]))
        self.replicas = [
            Node(binary, port, folder / str(number), *keeps_nothing, *replica_of)
            for number, port in enumerate(ports[1 : 1 + replicas], 1)
        ]
        until(lambda: self.master.ready() and self.connected() == replicas, "replicas")
        self.sentinels = [self._sentinel(binary, port, folder / f"s{port}") for port in ports[1 + replicas :]]
        until(lambda: all(self._is_settled(sentinel, replicas) for sentinel in self.sentinels), "sentinels")

    def connected(self) -> int:
        return int(self.master.client.info("replication")["connected_slaves"])

    def _sentinel(self, binary: str, port: int, folder: Path) -> Node:
        file = folder.with_suffix(".conf")
        name = self.service
        file.write_text(
            f"sentinel monitor {name} 127.0.0.1 {self.master.port} 2\n"
            f"sentinel down-after-milliseconds {name} {_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {name} 3000\n"
        )
        return Node(binary, port, folder, str(file), "--sentinel")

    def _is_settled(self, sentinel: Node, replicas: int) -> bool:
        told = self._told(sentinel)
        return (told["num-slaves"], told["num-other-sentinels"], told["flags"]) == (str(replicas), "2", "master")

    def _told(self, sentinel: Node) -> dict[str, str]:
        told = sentinel.client.execute_command("SENTINEL", "MASTER", self.service)
        return told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))

    def names(self, node: Node) -> bool:
        """Whether every sentinel says that this is the master."""
        return all(self._told(sentinel)["port"] in (node.port, str(node.port)) for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{self.service}"

    @property
    def nodes(self) -> list[Node]:
        return [self.master, *self.replicas, *self.sentinels]


class Sharded:
    """Three primaries with a replica each."""

    def __init__(self, binary: str, folder: Path) -> None:
        options = ("--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS))
        options += ("--repl-diskless-sync-delay", "0")
        self.nodes = [Node(binary, port, folder / str(port), *options) for port in free_ports(6)]
        until(lambda: all(node.ready() for node in self.nodes), "nodes")
        self.primaries, self.replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(self.nodes):
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.primaries):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(self._knows_all(node) for node in self.nodes), "nodes that know each other")
        for primary, replica in zip(self.primaries, self.replicas, strict=True):
            replica.client.execute_command("CLUSTER", "REPLICATE", self.id_of(primary))
        until(lambda: all(self.is_whole(node) for node in self.nodes), "a whole cluster")
        until(lambda: all(self._has_replica(node) for node in self.primaries), "replicas")

    def id_of(self, node: Node) -> str:
        return str(node.client.execute_command("CLUSTER", "MYID"))

    def _knows_all(self, node: Node) -> bool:
        return self._info(node)["cluster_known_nodes"] == "6"

    def _has_replica(self, node: Node) -> bool:
        return node.client.info("replication").get("slave0", {}).get("state") == "online"

    def _info(self, node: Node) -> dict[str, str]:
        told = node.client.execute_command("CLUSTER", "INFO")
        return told if isinstance(told, dict) else dict(line.split(":") for line in told.split("\r\n") if line)

    def is_whole(self, node: Node) -> bool:
        return self._info(node)["cluster_state"] == "ok"

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.primaries)}"


@contextmanager
def watched(binary: str, *, replicas: int = 1) -> Iterator[Watched]:
    with tempfile.TemporaryDirectory(prefix="gk-") as folder, _ended(Watched, binary, Path(folder), replicas) as made:
        yield made


@contextmanager
def sharded(binary: str) -> Iterator[Sharded]:
    with tempfile.TemporaryDirectory(prefix="gk-") as folder, _ended(Sharded, binary, Path(folder)) as made:
        yield made


@contextmanager
def _ended(make: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """What `make` makes; its processes are ended, however far it came."""
    begun: list[Node] = []
    start = Node.start

    def noting(node: Node) -> None:
        start(node)
        begun.append(node)

    Node.start = noting  # type: ignore[method-assign]
    try:
        yield make(*arguments)
    finally:
        Node.start = start  # type: ignore[method-assign]
        for node in begun:
            node.kill()
