"""The store's URL."""

from __future__ import annotations

import ssl
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from gatekeeper.store.connection import ConnectionOptions, Server, StoreCredentials

Topology = Literal["server", "sentinel", "cluster"]

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
        fields = _fields(url)
        server = Server(fields.get("host", "localhost"), fields.get("port", 6379), fields.get("path", ""))
        return Address("server", (server,), _options(fields, tls))
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    fields = _fields(f"redis://{user}{at}host/")
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
    parsed = [_fields(f"redis://{host}") for host in hosts.split(",")]
    return tuple(Server(fields.get("host", "localhost"), fields.get("port", _PORTS[topology])) for fields in parsed)


def _fields(url: str) -> dict[str, Any]:
    """Read the parts of a URL as redis-py does, whose client for applications gets the same URL."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("not a URL of a Redis server")
    parts = urlsplit(url)
    fields: dict[str, Any] = {name: unquote(values[0]) for name, values in parse_qs(parts.query).items()}
    for name, text in (("username", parts.username), ("password", parts.password)):
        if text:
            fields[name] = unquote(text)
    if parts.scheme == "unix":
        return fields | ({"path": unquote(parts.path)} if parts.path else {})
    if parts.hostname:
        fields["host"] = unquote(parts.hostname)
    if parts.port:
        fields["port"] = parts.port
    number = unquote(parts.path).replace("/", "")
    if "db" not in fields and number.isdecimal():
        fields["db"] = number
    return fields
