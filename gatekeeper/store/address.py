"""The store's URL, and a client of redis-py for subscriptions and for applications."""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    SSLConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gatekeeper.store.connection import ConnectionOptions, Server, StoreCredentials

Topology = Literal["server", "sentinel", "cluster"]

_CLIENT_CONNECTIONS: Final = 6
_PORTS: Final[dict[Topology, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}


class Address(msgspec.Struct, frozen=True):
    """A parsed URL. `servers` are the server itself, the sentinels, or nodes of a Cluster; `service` is the name under
    which the sentinels know the store."""

    topology: Topology
    servers: tuple[Server, ...]
    options: ConnectionOptions
    service: str = ""

    def take_credentials(self, other: Address) -> bool:
        """Use the user and the password of another URL from now on. Returns False, and does not, if that names another
        place than this one."""
        place = (self.topology, self.servers, self.service, self.options.database, self.options.tls is None)
        theirs = other.options
        if place != (other.topology, other.servers, other.service, theirs.database, theirs.tls is None):
            return False
        self.options.credentials.user = theirs.credentials.user
        self.options.credentials.password = theirs.credentials.password
        return True

    def __repr__(self) -> str:
        return f"<Address {self.topology} {','.join(map(str, self.servers))} {self.service}>"


def parse(url: str, *, ca_file: str | None = None) -> Address:
    """Parse `redis://`, `unix://`, `redis+sentinel://user:password@host:port,…/service/db` or
    `redis+cluster://host:port,…`; `rediss` in place of `redis` means TLS. Raises `ValueError`, whose text holds no
    password."""
    scheme, _, rest = url.partition("://")
    first, _, topology = scheme.partition("+")
    if topology not in ("", "sentinel", "cluster"):
        raise ValueError("not a URL of a Redis server")
    tls = ssl.create_default_context(cafile=ca_file) if first == "rediss" else None
    if not topology:
        fields = parse_url(url)
        server = Server(fields.get("host", "localhost"), fields.get("port", 6379), fields.get("path", ""))
        return Address("server", (server,), _options(fields, tls))
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    fields = parse_url(f"redis://{user}{at}host/")
    service, _, database = path.partition("/")
    options = _options({**fields, "db": database}, tls)
    if topology == "cluster":
        return Address("cluster", _servers(hosts, "cluster"), options)
    options = msgspec.structs.replace(options, must_be_primary=True)
    return Address("sentinel", _servers(hosts, "sentinel"), options, service)


def _options(fields: Any, tls: ssl.SSLContext | None) -> ConnectionOptions:
    credentials = StoreCredentials(fields.get("username"), fields.get("password"))
    return ConnectionOptions(credentials, int(fields.get("db") or 0), tls)


def _servers(hosts: str, topology: Topology) -> tuple[Server, ...]:
    parsed = [parse_url(f"redis://{host}") for host in hosts.split(",")]
    return tuple(Server(fields.get("host", "localhost"), fields.get("port", _PORTS[topology])) for fields in parsed)


def open_client(url: str, *, timeout_seconds: float, ca_file: str | None = None) -> Redis:
    """Make a client of redis-py, which connects at its first use. Behind sentinels it is a client of the primary; of a
    Cluster it is a `RedisCluster`.

    The defaults of redis-py do not suit a gate: it retries ten times, sends a script again whose reply was lost, and
    raises at once when its pool is full. With this client a call is tried once, and waits for a connection.
    """
    address = parse(url, ca_file=ca_file)
    connection_options = address.options
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.topology == "server":
        if ca_file and connection_options.tls is not None:
            options["ssl_ca_certs"] = ca_file
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_CLIENT_CONNECTIONS, timeout=timeout_seconds, **options
        )
        return Redis.from_pool(pool)
    credentials = connection_options.credentials
    options |= {"username": credentials.user, "password": credentials.password}
    if connection_options.tls is not None:
        options |= {"ssl": True, "ssl_ca_certs": ca_file}
    if address.topology == "cluster":
        client: Any = ClusterClient(address.servers, options)
        return client  # type: ignore[no-any-return]  # callers use only methods that both classes have
    to_primary = ConnectionPool(
        connection_class=_TlsPrimaryConnection if connection_options.tls is not None else _PrimaryConnection,
        db=connection_options.database,
        servers=address.servers,
        service=address.service,
        **{name: value for name, value in options.items() if name != "ssl"},
    )
    return Redis.from_pool(to_primary)


class ClusterClient(RedisCluster):
    """A `RedisCluster` that subscribes at any node that it can reach, since a Cluster delivers a message at all nodes.
    redis-py binds a subscription to the node of the channel's slot, and knows no node before its first command."""

    def __init__(self, servers: Sequence[Server], options: dict[str, Any]) -> None:
        super().__init__(startup_nodes=[ClusterNode(server.host, server.port) for server in servers], **options)
        connection_class = _TlsAnyNodeConnection if options.get("ssl") else _AnyNodeConnection
        options = {name: value for name, value in options.items() if name != "ssl"} | {"servers": servers}
        pool = ConnectionPool(connection_class=connection_class, **options)
        self._subscriptions = Redis.from_pool(pool)

    def pubsub(self, *_: Any, **options: Any) -> Any:
        return self._subscriptions.pubsub(**options)

    async def aclose(self) -> None:
        await self._subscriptions.aclose()
        await super().aclose()


class _AnyNodeConnection(Connection):
    """A connection to the first of several servers, in random order, that accepts one."""

    def __init__(self, *, servers: Sequence[Server], **options: Any) -> None:
        super().__init__(**options)
        self._servers = servers

    async def _connect(self) -> None:
        fault: BaseException = ConnectionError()
        for server in random.sample(self._servers, len(self._servers)):
            self.host, self.port = server.host, server.port
            try:
                await super()._connect()  # type: ignore[no-untyped-call]
            except (OSError, TimeoutError) as error:
                fault = error
            else:
                return
        raise fault


class _TlsAnyNodeConnection(_AnyNodeConnection, SSLConnection):
    pass


class _PrimaryConnection(Connection):
    """A connection to the primary that the first sentinel to reply names. The `Sentinel` class of redis-py has to
    know whether the sentinels ask for a password; this one tries with and without."""

    def __init__(self, *, servers: Sequence[Server], service: str, **options: Any) -> None:
        super().__init__(db=options.pop("db"), **options)
        self._servers = servers
        self._service = service
        self._credentials = {name: options[name] for name in ("username", "password")}
        for_sentinels = ("socket_timeout", "socket_connect_timeout", "retry", "protocol", "ssl_ca_certs")
        self._sentinel_options: dict[str, Any] = {name: options[name] for name in for_sentinels if name in options}
        self._sentinel_options["ssl"] = isinstance(self, SSLConnection)

    async def _connect(self) -> None:
        for server in random.sample(self._servers, len(self._servers)):
            for credentials in (self._credentials, {}):
                sentinel = Redis(host=server.host, port=server.port, **credentials, **self._sentinel_options)
                try:
                    primary = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                        "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
                    )
                except RedisError:
                    continue
                finally:
                    await sentinel.aclose()
                if primary:
                    self.host, self.port = primary[0].decode(), int(primary[1])
                    await super()._connect()  # type: ignore[no-untyped-call]
                    return
        raise RedisConnectionError("no sentinel names a primary")


class _TlsPrimaryConnection(_PrimaryConnection, SSLConnection):
    pass
