"""Where the store is, by its URL, and a client of redis-py for what is not a verdict."""

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

from gatekeeper.store.connection import ConnectionOptions, Server

Kind = Literal["server", "sentinel", "cluster"]

_CLIENT_CONNECTIONS: Final = 6
_PORTS: Final[dict[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}


class Address(msgspec.Struct, frozen=True):
    """The server, or the sentinels, or nodes of a cluster; `service` is the name that the sentinels know."""

    kind: Kind
    servers: tuple[Server, ...]
    login: ConnectionOptions
    service: str = ""

    def __repr__(self) -> str:
        return f"<Address {self.kind} {','.join(map(str, self.servers))} {self.service}>"


def parse(url: str, *, ca_file: str | None = None) -> Address:
    """`redis://`, `rediss://`, `unix://`, and `redis+sentinel://user:password@host:port,…/service/db` and
    `redis+cluster://host:port,…`, both also with `rediss`. Raises `ValueError`, with no password in it."""
    scheme, _, rest = url.partition("://")
    first, _, kind = scheme.partition("+")
    if kind not in ("", "sentinel", "cluster"):
        raise ValueError("is not a URL of a store")
    tls = ssl.create_default_context(cafile=ca_file) if first == "rediss" else None
    if not kind:
        parts = parse_url(url)
        server = Server(parts.get("host", "localhost"), parts.get("port", 6379), parts.get("path", ""))
        return Address("server", (server,), _login(parts, tls))
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    parts = parse_url(f"redis://{user}{at}host/")
    service, _, database = path.partition("/")
    login = _login({**parts, "db": database}, tls)
    if kind == "cluster":
        return Address("cluster", _servers(hosts, "cluster"), login)
    return Address(
        "sentinel", _servers(hosts, "sentinel"), msgspec.structs.replace(login, must_be_master=True), service
    )


def _login(parts: Any, tls: ssl.SSLContext | None) -> ConnectionOptions:
    return ConnectionOptions(parts.get("username"), parts.get("password"), int(parts.get("db") or 0), tls)


def _servers(hosts: str, kind: Kind) -> tuple[Server, ...]:
    found = [parse_url(f"redis://{host}") for host in hosts.split(",")]
    return tuple(Server(parts.get("host", "localhost"), parts.get("port", _PORTS[kind])) for parts in found)


def open_client(url: str, *, timeout_seconds: float, ca_file: str | None = None) -> Redis:
    """A client of redis-py, which connects when first used: for subscriptions, and for the application.

    redis-py's defaults do not suit a gate: it would retry ten times, send a script again whose reply was lost, and
    raise at once when its pool is full. Here a call is tried once and is bounded in time. Behind sentinels it is a
    client of the master; of a cluster it is a `RedisCluster`.
    """
    address = parse(url, ca_file=ca_file)
    login = address.login
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.kind == "server":
        if ca_file and login.tls is not None:
            options["ssl_ca_certs"] = ca_file
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_CLIENT_CONNECTIONS, timeout=timeout_seconds, **options
        )
        return Redis.from_pool(pool)
    options |= {"username": login.user, "password": login.password}
    if login.tls is not None:
        options |= {"ssl": True, "ssl_ca_certs": ca_file}
    if address.kind == "cluster":
        client: Any = ClusterClient(address.servers, options)
        return client  # type: ignore[no-any-return]  # used is what both can do alike
    to_master = ConnectionPool(
        connection_class=_TlsToMaster if login.tls is not None else _ToMaster,
        db=login.database,
        servers=address.servers,
        service=address.service,
        **{name: value for name, value in options.items() if name != "ssl"},
    )
    return Redis.from_pool(to_master)


class ClusterClient(RedisCluster):
    """Subscribes at any node that can be reached: a message published at one is heard at all. redis-py's own binds a
    subscription to the node of the channel's slot, and knows none before its first command."""

    def __init__(self, servers: Sequence[Server], options: dict[str, Any]) -> None:
        super().__init__(startup_nodes=[ClusterNode(server.host, server.port) for server in servers], **options)
        connection_class = _TlsToAny if options.get("ssl") else _ToAny
        options = {name: value for name, value in options.items() if name != "ssl"} | {"servers": servers}
        pool = ConnectionPool(connection_class=connection_class, **options)
        self._subscribing = Redis.from_pool(pool)

    def pubsub(self, *_: Any, **options: Any) -> Any:
        return self._subscribing.pubsub(**options)

    async def aclose(self) -> None:
        await self._subscribing.aclose()
        await super().aclose()


class _ToAny(Connection):
    """A connection to the first of several servers that takes one."""

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


class _TlsToAny(_ToAny, SSLConnection):
    pass


class _ToMaster(Connection):
    """A connection to the master that the first sentinel names which answers. redis-py's own `Sentinel` would have to
    be told whether the sentinels ask for a password."""

    def __init__(self, *, servers: Sequence[Server], service: str, **options: Any) -> None:
        super().__init__(db=options.pop("db"), **options)
        self._servers = servers
        self._service = service
        self._login = {name: options[name] for name in ("username", "password")}
        asking = ("socket_timeout", "socket_connect_timeout", "retry", "protocol", "ssl_ca_certs")
        self._asking: dict[str, Any] = {name: options[name] for name in asking if name in options}
        self._asking["ssl"] = isinstance(self, SSLConnection)

    async def _connect(self) -> None:
        for server in random.sample(self._servers, len(self._servers)):
            for login in (self._login, {}):
                sentinel = Redis(host=server.host, port=server.port, **login, **self._asking)
                try:
                    told = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                        "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
                    )
                except RedisError:
                    continue
                finally:
                    await sentinel.aclose()
                if told:
                    self.host, self.port = told[0].decode(), int(told[1])
                    await super()._connect()  # type: ignore[no-untyped-call]
                    return
        raise RedisConnectionError("no sentinel knows its master")


class _TlsToMaster(_ToMaster, SSLConnection):
    pass
