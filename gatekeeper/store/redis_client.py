"""A client of redis-py for applications. Nothing that serves requests loads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    SSLConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gatekeeper.store.address import parse
from gatekeeper.store.connection import Server

_CLIENT_CONNECTIONS: Final = 6
_chance: Final = random.Random()  # noqa: S311 - no secret


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
        for server in _chance.sample(self._servers, len(self._servers)):
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
        for server in _chance.sample(self._servers, len(self._servers)):
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
