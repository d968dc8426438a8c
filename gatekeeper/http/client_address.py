"""The client's address, for sessions, limits and the access log. Pure.

One function decides it: `TrustedProxies.client`. Its only source is `X-Forwarded-For`, to which every proxy appends the
address that it was called from. Read from the right, each entry is as reliable as the proxy that wrote it; reading
stops at the first one that is not trusted, for the client itself can have written all entries left of it. `Forwarded`
and `X-Real-IP` are never read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from gatekeeper.http.headers import Headers, get_all

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX_PEER: Final = "unix:"
"""The address of a peer on a Unix socket, as in nginx. As a network it trusts such peers."""

# Real chains of proxies have two to five hops.
_MAX_HOPS = 32

# No address with zone and port is longer; longer text is not cached.
_MAX_CHARS = 80

_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


class TrustedProxies:
    """The networks whose forwarding headers are believed. Without any, no peer's are, loopback included.

    `networks` are `ipaddress` networks, their text (`10.0.0.0/8`, `::1`), or `unix:` for peers on a Unix socket. Raises
    ValueError for anything else, and for a network with host bits set.
    """

    def __init__(self, networks: Iterable[str | Network]) -> None:
        given = list(networks)
        self._unix = UNIX_PEER in given
        self._networks: tuple[Network, ...] = tuple(
            _unmapped_network(ipaddress.ip_network(network)) for network in given if network != UNIX_PEER
        )

    def __repr__(self) -> str:
        return f"<TrustedProxies {[*map(str, self._networks), *[UNIX_PEER] * self._unix]}>"

    def trusts(self, peer: str | None) -> bool:
        """Tell whether forwarding headers from this peer are believed. None stands for a peer on a Unix socket, which
        is trusted only if `unix:` is among the networks."""
        if not self._networks:
            return self._unix and peer is None
        if peer is None:
            return self._unix
        address = _parsed(peer)
        return address is not None and self._contains(address)

    def can_tell_clients_apart(self, peer: str | None) -> bool:
        """Tell whether the address belongs to one client. It does not if the peer is private, loopback or on a Unix
        socket while no proxy is trusted: such a peer is a proxy that the settings do not name, and all its clients
        would share its address."""
        if self._networks or self._unix:
            return True
        address = None if peer is None else _parsed(peer)
        return address is not None and not address.is_private

    def counted_as(self, client: str, peer: str | None) -> str | None:
        """Return the text by which limits count the client (`counted_as`), None if its address is not that of one
        client."""
        return counted_as(client) if self.can_tell_clients_apart(peer) else None

    def client(self, peer: str | None, headers: Headers) -> str:
        """Return the client's address: the peer's, or behind trusted peers the right-most untrusted one of
        `X-Forwarded-For`, whose lines are joined in order.

        If every hop is trusted, it is the left-most. An entry that is not an address ends the reading at the hop that
        sent it. IPv4-mapped IPv6 becomes IPv4; ports, brackets and zone ids are removed. A peer on a Unix socket is
        `unix:`.
        """
        client = UNIX_PEER if peer is None else canonical(peer)
        if not self.trusts(peer):
            return client
        for hop in _hops_from_the_right(headers):
            address = _parsed(hop)
            if address is None:
                break
            client = str(address)
            if not self._contains(address):
                break
        return client

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


# The prefix under which a translator (NAT64, RFC 6052 section 2.1) writes IPv4 addresses.
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SUBNET_BITS: Final = 64


def counted_as(client: str) -> str:
    """Return the text by which limits count an address: an IPv6 address as its /64, because one client has all of
    that (RFC 4291 section 2.5.4); an IPv4 address that IPv6 carries, mapped or translated, as IPv4. Text that is not an
    address counts as it is."""
    return _counted_cached(client) if len(client) <= _MAX_CHARS else client


@lru_cache(maxsize=4096)
def _counted_cached(client: str) -> str:
    address = _parsed_cached(client)
    if not isinstance(address, ipaddress.IPv6Address):
        return client if address is None else str(address)
    if address in _TRANSLATED:
        return str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return str(ipaddress.IPv6Network((address, _SUBNET_BITS), strict=False))


def _hops_from_the_right(headers: Headers) -> list[str]:
    joined = b",".join(get_all(headers, b"x-forwarded-for"))
    hops = joined.rsplit(b",", _MAX_HOPS)[-_MAX_HOPS:]
    return [hop.strip(b" \t").decode("latin-1") for hop in reversed(hops)]


def canonical(peer: str) -> str:
    """Return a peer's address in the spelling that is used everywhere: IPv4-mapped as IPv4, without zone. Text that is
    not an address is returned as it is (test clients invent such names)."""
    return _canonical_cached(peer) if len(peer) <= _MAX_CHARS else peer


@lru_cache(maxsize=4096)
def _canonical_cached(peer: str) -> str:
    address = _parsed_cached(peer)
    return peer if address is None else str(address)


def _parsed(text: str) -> Address | None:
    return _parsed_cached(text) if len(text) <= _MAX_CHARS else None


@lru_cache(maxsize=4096)
def _parsed_cached(text: str) -> Address | None:
    """Return the address in `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]` or `[::1]:80`; None for anything else.

    Gateways of Azure and IIS write ports. Short and hexadecimal forms (`127.1`, `0x7f.1`) and leading zeros are not
    accepted, because parsers disagree about them.
    """
    if match := _WITH_PORT.fullmatch(text):
        text = match["v6"] or match["v4"]
        if match["v6"] and ":" not in text:
            return None
    if ":" in text:
        # A zone id names an interface of the host that wrote it; it is not part of the address.
        text = text.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return _unmapped(address)


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _unmapped_network(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network
