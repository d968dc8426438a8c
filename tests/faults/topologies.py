"""Stores of several processes on loopback: a master with replicas and sentinels, and a cluster; both also over TLS."""

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
from typing import Any, NamedTuple

import redis

from tests.faults.certificates import Tls
from tests.waiting import HANG_SECONDS, START_SECONDS

# A server that a busy machine keeps waiting must not be taken for dead.
_DOWN_AFTER_MS = 2_000
_NODE_TIMEOUT_MS = 2_500
SLOTS = 16_384


def until(true: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
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
    """One server, on a port of loopback; with `tls` it speaks nothing else."""

    def __init__(
        self,
        binary: str,
        port: int,
        folder: Path,
        *options: str,
        config: str,
        password: str | None,
        tls: Tls | None = None,
    ) -> None:
        folder.mkdir()
        self.port = port
        self.folder = folder
        file = folder / "node.conf"
        file.write_text(config)
        ports = ("--port", str(port)) if tls is None else ("--port", "0", "--tls-port", str(port), *tls.options)
        self.command = [binary, str(file), *options, *ports, "--bind", "127.0.0.1", "--dir", str(folder)]
        over: dict[str, Any] = {}
        if tls is not None:
            # It is verified by whom the test is about.
            over = {"ssl": True, "ssl_ca_certs": str(tls.ca_file), "ssl_check_hostname": False}
        # Given to the next start, beside that of this process.
        self.environment: dict[str, str] = {}
        self.client = redis.Redis(
            port=port, password=password, socket_timeout=HANG_SECONDS, decode_responses=True, **over
        )
        self.start()

    def start(self) -> None:
        environment = {**os.environ, **self.environment}
        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, env=environment, stdin=nowhere, stdout=nowhere)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, *command: Any) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def ready(self) -> bool:
        if self.process.poll() is not None:
            # Somebody had its port, or that of its bus, for a moment.
            self.start()
        return bool(self.client.ping())

    def is_master(self) -> bool:
        return self.ask("ROLE")[0] in ("master", b"master")

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()


Make = Callable[..., Node]


class Over(NamedTuple):
    """TLS for all servers of a store. They announce themselves as `name`, an address or a name of this host."""

    tls: Tls
    name: str

    @property
    def is_address(self) -> bool:
        return self.name[0].isdigit()


class Watched:
    """A master, its replicas, and three sentinels."""

    service = "sessions"

    def __init__(
        self, make: Make, replicas: int, password: str | None, *, guarded: bool, over: Over | None = None
    ) -> None:
        ports = free_ports(1 + replicas + 3)
        self._over = over
        self._name = over.name if over is not None else "127.0.0.1"
        keeps_nothing = ["--save", "", "--repl-diskless-sync-delay", "0"]
        if password is not None:
            keeps_nothing += ["--requirepass", password, "--masterauth", password]
        self.password = password
        self._guarded = guarded
        self.master = make(ports[0], *keeps_nothing, password=password)
        if over is not None and not over.is_address:
            keeps_nothing += ["--replica-announce-ip", over.name]
        replica_of = ("--replicaof", self._name, str(ports[0]))
        self.replicas = [make(port, *keeps_nothing, *replica_of, password=password) for port in ports[1 : 1 + replicas]]
        until(lambda: self.master.ready() and self.connected() == replicas, "replicas")
        self.sentinels = [self._sentinel(make, port) for port in ports[1 + replicas :]]
        until(lambda: all(self._is_settled(sentinel, replicas) for sentinel in self.sentinels), "sentinels")

    def connected(self) -> int:
        return int(self.master.client.info("replication")["connected_slaves"])

    def _sentinel(self, make: Make, port: int) -> Node:
        by_name = "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
        config = (
            f"{'' if self._name == '127.0.0.1' else by_name}"
            f"sentinel monitor {self.service} {self._name} {self.master.port} 2\n"
            f"sentinel down-after-milliseconds {self.service} {_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {self.service} 3000\n"
        )
        if self.password is not None:
            config += f"sentinel auth-pass {self.service} {self.password}\n"
        if not self._guarded:
            return make(port, "--sentinel", config=config)
        config += f"requirepass {self.password}\nsentinel sentinel-pass {self.password}\n"
        return make(port, "--sentinel", config=config, password=self.password)

    def _is_settled(self, sentinel: Node, replicas: int) -> bool:
        told = self._told(sentinel)
        return (int(told["num-slaves"]), int(told["num-other-sentinels"])) == (replicas, 2)

    def _told(self, sentinel: Node) -> dict[str, Any]:
        told = sentinel.ask("SENTINEL", "MASTER", self.service)
        return told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))

    def names(self, node: Node) -> bool:
        """Whether every sentinel says that this is the master."""
        return all(self._told(sentinel)["port"] in (node.port, str(node.port)) for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password is not None else ""
        hosts = ",".join(f"{self._name}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis{'' if self._over is None else 's'}+sentinel://{login}{hosts}/{self.service}"

    @property
    def nodes(self) -> list[Node]:
        return [self.master, *self.replicas, *self.sentinels]


class Sharded:
    """Three primaries with a replica each."""

    def __init__(self, make: Make, password: str | None = None, over: Over | None = None) -> None:
        self._over = over
        self._password = password
        timeout = str(_NODE_TIMEOUT_MS)
        options = ["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", timeout]
        options += ["--repl-diskless-sync-delay", "0"]
        if password is not None:
            options += ["--requirepass", password, "--masterauth", password]
        if over is not None:
            options += ["--tls-cluster", "yes"]
            if not over.is_address:
                options += ["--cluster-announce-hostname", over.name, "--cluster-preferred-endpoint-type", "hostname"]
        self.nodes = [make(port, *options, password=password) for port in free_ports(6)]
        until(lambda: all(node.ready() for node in self.nodes), "nodes")
        self.primaries, self.replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.primaries):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(self._knows_all(node) for node in self.nodes), "nodes that know each other")
        for primary, replica in zip(self.primaries, self.replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", self.id_of(primary))
        until(lambda: all(self.is_whole(node) for node in self.nodes), "a whole cluster")
        until(lambda: all(self._has_replica(node) for node in self.primaries), "replicas")

    def id_of(self, node: Node) -> str:
        return str(node.ask("CLUSTER", "MYID"))

    def _knows_all(self, node: Node) -> bool:
        return self._info(node)["cluster_known_nodes"] == "6"

    def _has_replica(self, node: Node) -> bool:
        return bool(node.client.info("replication").get("slave0", {}).get("state") == "online")

    def _info(self, node: Node) -> dict[str, str]:
        told = node.ask("CLUSTER", "INFO")
        return told if isinstance(told, dict) else dict(line.split(":") for line in told.split("\r\n") if line)

    def is_whole(self, node: Node) -> bool:
        return self._info(node)["cluster_state"] == "ok"

    @property
    def url(self) -> str:
        if self._over is None:
            return f"redis+cluster://{','.join(node.address for node in self.primaries)}"
        login = f":{self._password}@" if self._password is not None else ""
        return f"rediss+cluster://{login}{','.join(f'{self._over.name}:{node.port}' for node in self.primaries)}"


@contextmanager
def watched(
    binary: str, *, replicas: int = 1, password: str | None = None, guarded: bool = False, over: Over | None = None
) -> Iterator[Watched]:
    """`guarded`: the sentinels ask for the password too."""
    with _nodes(binary, over) as make:
        yield Watched(make, replicas, password, guarded=guarded, over=over)


@contextmanager
def sharded(binary: str, *, password: str | None = None, over: Over | None = None) -> Iterator[Sharded]:
    with _nodes(binary, over) as make:
        yield Sharded(make, password, over)


@contextmanager
def servers(binary: str, number: int) -> Iterator[list[Node]]:
    """Servers that know nothing of each other."""
    with _nodes(binary, None) as make:
        made = [make(port, "--save", "", password=None) for port in free_ports(number)]
        for node in made:
            until(node.ready, "a server")
        yield made


@contextmanager
def _nodes(binary: str, over: Over | None) -> Iterator[Make]:
    """Makes nodes, which are ended at the end."""
    tls = over.tls if over is not None else None
    made: list[Node] = []

    def make(port: int, *options: str, config: str = "", password: str | None = None) -> Node:
        where = Path(folder) / str(port)
        made.append(Node(binary, port, where, *options, config=config, password=password, tls=tls))
        return made[-1]

    with tempfile.TemporaryDirectory(prefix="gk-") as folder:
        try:
            yield make
        finally:
            for node in made:
                node.kill()
