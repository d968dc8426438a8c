"""The client's address, for sessions, limits and the access log. Pure, but for two log lines.

One function decides it: `TrustedProxies.client`. Its source is one header, the first of `CLIENT_ADDRESS_HEADER` that a
trusted peer sent: by default `X-Forwarded-For`, to which every proxy appends the address that it was called from. Read
from the right, each entry is as reliable as the proxy that wrote it; reading stops at the first one that is not
trusted, for the client itself can have written all entries left of it. Where a trusted peer names no address,
it is unknown, and no limit counts it.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from gatekeeper.http.headers import Headers, get_all

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX_PEER: Final = "unix:"
"""The address of a peer on a Unix socket, as in nginx. As a network it trusts such peers."""

UNKNOWN: Final = "unknown"
"""The address where a trusted peer names none, as `Forwarded` writes it (RFC 7239 section 6.2)."""

NO_ADDRESS: Final = frozenset({UNIX_PEER, UNKNOWN})

ADDRESS_HEADERS: Final = ("x-forwarded-for", "forwarded", "x-real-ip")
"""The headers that are read unless the settings say otherwise, the first one that is there."""

_log = logging.getLogger("gatekeeper")

# Real chains of proxies have two to five hops.
_MAX_HOPS = 32

# No address with zone and port is longer; longer text is not cached.
_MAX_CHARS = 80

# As much as those hops may take, with parameters.
_MAX_BYTES = 8192

# A quoted node has no escapes: no address needs one.
_FOR = re.compile(r'for=([^\s";,=]+|"[^"\\]*")', re.IGNORECASE)
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


class TrustedProxies:
    """The networks whose forwarding headers are believed. Without any, no peer's are, loopback included.

    `networks` are `ipaddress` networks, their text (`10.0.0.0/8`, `::1`), or `unix:` for peers on a Unix socket. Raises
    ValueError for anything else, and for a network with host bits set. `headers` are the names, in lower case, of the
    headers that may name the client; of those that are there the first one does. `Forwarded` is read as RFC 7239 has
    it, every other one as a list of addresses.
    """

    def __init__(self, networks: Iterable[str | Network], headers: Iterable[str] = ADDRESS_HEADERS) -> None:
        given = list(networks)
        self._unix = UNIX_PEER in given
        self._networks: tuple[Network, ...] = tuple(
            _unmapped_network(ipaddress.ip_network(network)) for network in given if network != UNIX_PEER
        )
        self._headers = tuple(name.encode() for name in headers)
        # Each is said once in the life of the process.
        self._logged_differing = self._logged_unknown = False

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
        client, or is unknown."""
        return counted_as(client) if client != UNKNOWN and self.can_tell_clients_apart(peer) else None

    def client(self, peer: str | None, headers: Headers) -> str:
        """Return the client's address: the peer's, or behind trusted peers the right-most untrusted one of the header
        that counts, whose lines are joined in order.

        If every hop is trusted, it is the left-most. An entry that is not an address ends the reading at the hop that
        sent it; where that is the peer, the address is `unknown`. Empty entries are ignored. IPv4-mapped IPv6 becomes
        IPv4; ports, brackets and zone ids are removed. A peer on a Unix socket is `unix:`.
        """
        if not self.trusts(peer):
            return UNIX_PEER if peer is None else canonical(peer)
        found: tuple[str, bytes] | None = None
        for name in self._headers:
            hops = _hops_from_the_right(name, get_all(headers, name))
            if not hops:
                continue
            client = self._named_in(hops)
            if found is None:
                found = client, name
            elif client != found[0]:
                self._log_differing(name, found[1])
        if found is None or found[0] == UNKNOWN:
            self._log_unknown(peer)
            return UNKNOWN
        return found[0]

    def _log_differing(self, name: bytes, counted: bytes) -> None:
        if not self._logged_differing:
            self._logged_differing = True
            _log.warning(
                "client address is named twice: %s says another one than %s, which counts "
                "(GATEKEEPER_CLIENT_ADDRESS_HEADER)",
                name.decode(),
                counted.decode(),
            )

    def _log_unknown(self, peer: str | None) -> None:
        if not self._logged_unknown:
            self._logged_unknown = True
            _log.warning(
                "client address is unknown: the trusted peer %s names none in %s (GATEKEEPER_TRUSTED_PROXIES, "
                "GATEKEEPER_CLIENT_ADDRESS_HEADER)",
                UNIX_PEER if peer is None else canonical(peer),
                " or ".join(name.decode() for name in self._headers),
            )

    def _named_in(self, hops: Iterable[str]) -> str:
        """Return the address that a header names, read from its right end."""
        client = UNKNOWN
        for hop in hops:
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


def _hops_from_the_right(name: bytes, values: Iterable[bytes]) -> list[str]:
    # Lines of one list are joined in order (RFC 9110 section 5.3), and empty elements ignored (section 5.6.1).
    elements = [part for part in b",".join(values)[-_MAX_BYTES:].split(b",") if part.strip(b" \t")][-_MAX_HOPS:]
    hops = [element.strip(b" \t").decode("latin-1") for element in reversed(elements)]
    return [_named_for(hop) for hop in hops] if name == b"forwarded" else hops


def _named_for(element: str) -> str:
    """Return the node that an element of `Forwarded` was sent for (RFC 7239 section 5.2); empty text where it does not
    say, or says more than once."""
    found = [match[1] for pair in element.split(";") if (match := _FOR.fullmatch(pair.strip(" \t")))]
    if len(found) != 1:
        return ""
    [node] = found
    return node[1:-1] if node.startswith('"') else node


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
