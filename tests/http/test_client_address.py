"""The client's address, whatever the client claims."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http.client_address import UNIX_PEER, UNKNOWN, TrustedProxies, counted_as

TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8", "::1"])


def forwarded(*lines: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", line) for line in lines]


# I01, I07
@pytest.mark.parametrize("peer", ["203.0.113.9", "127.0.0.1", "11.0.0.1", "fe80::1"])
def test_an_untrusted_peer_speaks_for_nobody_but_itself(peer: str) -> None:
    assert TRUSTED.client(peer, forwarded(b"1.2.3.4")) == peer
    assert not TRUSTED.trusts(peer)


# I07, P0-S18
def test_without_networks_nobody_is_trusted() -> None:
    nobody = TrustedProxies([])

    assert nobody.client("127.0.0.1", forwarded(b"1.2.3.4")) == "127.0.0.1"
    assert not nobody.trusts("127.0.0.1")
    assert not nobody.trusts(None)


# I02, I03
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"203.0.113.5",), "203.0.113.5"),
        ((b"6.6.6.6, 203.0.113.5",), "203.0.113.5"),
        ((b"6.6.6.6, 203.0.113.5, 10.0.0.7",), "203.0.113.5"),
        ((b"6.6.6.6", b"203.0.113.5"), "203.0.113.5"),
        ((b"203.0.113.5", b"10.0.0.7,10.0.0.8"), "203.0.113.5"),
        ((b"10.0.0.6, 10.0.0.7",), "10.0.0.6"),
        ((b"6.6.6.6, 203.0.113.5, ,",), "203.0.113.5"),
        ((b"6.6.6.6", b"", b"203.0.113.5", b" "), "203.0.113.5"),
        ((), UNKNOWN),
        ((b"",), UNKNOWN),
        ((b" , ,",), UNKNOWN),
    ],
)
def test_behind_trusted_peers_it_is_the_right_most_untrusted_address(lines: tuple[bytes, ...], expected: str) -> None:
    assert TRUSTED.client("10.0.0.1", forwarded(*lines)) == expected


# I03
def test_of_several_headers_the_first_one_of_the_settings_counts() -> None:
    headers = [(b"x-real-ip", b"6.6.6.6"), (b"forwarded", b"for=7.7.7.7"), *forwarded(b"203.0.113.5")]

    assert TRUSTED.client("10.0.0.1", headers) == "203.0.113.5"
    assert TRUSTED.client("10.0.0.1", headers[:2]) == "7.7.7.7"
    assert TRUSTED.client("10.0.0.1", headers[:1]) == "6.6.6.6"
    # One without a single element says nothing; one that holds something else than an address is not passed over.
    assert TRUSTED.client("10.0.0.1", [*headers[:2], *forwarded(b"", b" ,")]) == "7.7.7.7"
    assert TRUSTED.client("10.0.0.1", [*headers[:2], *forwarded(b"nobody")]) == UNKNOWN
    # From a peer that is not trusted none counts.
    assert TRUSTED.client("203.0.113.9", headers) == "203.0.113.9"
    only = TrustedProxies(["10.0.0.0/8"], ["cf-connecting-ip"])
    assert only.client("10.0.0.1", headers) == UNKNOWN
    assert only.client("10.0.0.1", [*headers, (b"cf-connecting-ip", b"198.51.100.7")]) == "198.51.100.7"


# I03, I04
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"for=203.0.113.5",), "203.0.113.5"),
        ((b"For=203.0.113.5;proto=https;by=10.0.0.1",), "203.0.113.5"),
        ((b"proto=http; for=203.0.113.5",), "203.0.113.5"),
        ((b'for="203.0.113.5:4711"',), "203.0.113.5"),
        ((b'for="[2001:db8::1]:4711"',), "2001:db8::1"),
        ((b'for="[2001:db8::1]"',), "2001:db8::1"),
        ((b"for=6.6.6.6, for=203.0.113.5, for=10.0.0.7",), "203.0.113.5"),
        ((b"for=6.6.6.6", b"for=203.0.113.5"), "203.0.113.5"),
        # What the client wrote cannot swallow what the proxy appends.
        ((b'for="6.6.6.6', b"for=203.0.113.5"), "203.0.113.5"),
        ((b'for="6.6.6.6, for=203.0.113.5',), "203.0.113.5"),
        ((b"for=unknown",), UNKNOWN),
        ((b"for=_hidden",), UNKNOWN),
        ((b"for=203.0.113.5;for=6.6.6.6",), UNKNOWN),
        ((b"for=6.6.6.6, proto=https",), UNKNOWN),
        ((b"203.0.113.5",), UNKNOWN),
        ((b"for=",), UNKNOWN),
        ((b'for=203.0.113.5"',), UNKNOWN),
        ((b'for="203.0.113\\.5"',), UNKNOWN),
        ((b"xfor=203.0.113.5",), UNKNOWN),
    ],
)
def test_forwarded_is_read_from_its_right_end_too(lines: tuple[bytes, ...], expected: str) -> None:
    assert TRUSTED.client("10.0.0.1", [(b"forwarded", line) for line in lines]) == expected


def test_no_limit_counts_an_unknown_address_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    trusted = TrustedProxies(["10.0.0.0/8"])
    for _ in range(3):
        assert trusted.client("10.0.0.1", [(b"x-real-ip", b"nobody")]) == UNKNOWN
    assert trusted.counted_as(UNKNOWN, "10.0.0.1") is None
    assert trusted.counted_as("203.0.113.5", "10.0.0.1") == "203.0.113.5"
    [line] = caplog.messages
    assert line.startswith("client address is unknown: the trusted peer 10.0.0.1 names none")
    assert "GATEKEEPER_CLIENT_ADDRESS_HEADER" in line


def test_two_headers_that_differ_are_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    trusted = TrustedProxies(["10.0.0.0/8"])
    assert trusted.client("10.0.0.1", [*forwarded(b"203.0.113.5"), (b"x-real-ip", b"203.0.113.5")]) == "203.0.113.5"
    assert trusted.client("198.51.100.1", [*forwarded(b"203.0.113.5"), (b"x-real-ip", b"6.6.6.6")]) == "198.51.100.1"
    assert not caplog.messages
    for number in range(3):
        headers = [*forwarded(b"203.0.113.5"), (b"x-real-ip", b"6.6.6.%d" % number)]
        assert trusted.client("10.0.0.1", headers) == "203.0.113.5"
    [line] = caplog.messages
    assert line == (
        "client address is named twice: x-real-ip says another one than x-forwarded-for, which counts "
        "(GATEKEEPER_CLIENT_ADDRESS_HEADER)"
    )


# I04
@pytest.mark.parametrize(
    ("hop", "expected"),
    [
        (b"1.2.3.4:80", "1.2.3.4"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"::ffff:203.0.113.5", "203.0.113.5"),
        (b"[::ffff:203.0.113.5]:80", "203.0.113.5"),
        (b" \t1.2.3.4 ", "1.2.3.4"),
        (b"fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_forms_that_proxies_write_are_read(hop: bytes, expected: str) -> None:
    assert TRUSTED.client("10.0.0.1", forwarded(hop)) == expected


# I04
@pytest.mark.parametrize(
    "garbage",
    [
        b"127.1",
        b"0x7f.1",
        b"2130706433",
        b"010.0.0.1",
        b"unknown",
        b"_hidden",
        b"1.2.3.4:",
        b"1.2.3.4:http",
        b"1.2.3.4:999999",
        b"[1.2.3.4]:80",
        b"[::1",
        b"1.2.3.4%eth0",
        b"1.2.3.4 5.6.7.8",
        b"1.2.3.4;5.6.7.8",
        b'"1.2.3.4"',
        b"10.0.0.0/8",
        b"\xb2.2.3.4",
        b"\xff",
        b"1" * 5000,
    ],
)
def test_garbage_ends_the_reading_at_the_hop_that_sent_it(garbage: bytes) -> None:
    assert TRUSTED.client("10.0.0.1", forwarded(b"6.6.6.6, " + garbage)) == UNKNOWN
    assert TRUSTED.client("10.0.0.1", forwarded(b"6.6.6.6, " + garbage + b", 10.0.0.2")) == "10.0.0.2"


# I04
def test_long_chains_are_read_from_the_right_and_not_to_their_end() -> None:
    assert TRUSTED.client("10.0.0.1", forwarded(b"6.6.6.6, " * 10_000 + b"203.0.113.5")) == "203.0.113.5"
    assert TRUSTED.client("10.0.0.1", forwarded(b"6.6.6.6" + b",10.0.0.2" * 10_000)) == "10.0.0.2"


# I05
@pytest.mark.parametrize("peer", ["::ffff:10.0.0.1", "fd00::1%eth0", "0:0:0:0:0:0:0:1"])
def test_mapped_addresses_and_zones_match_the_networks(peer: str) -> None:
    assert TRUSTED.trusts(peer)
    assert TRUSTED.client(peer, forwarded(b"203.0.113.5")) == "203.0.113.5"


# I05
def test_a_mapped_network_is_the_ipv4_network() -> None:
    assert TrustedProxies(["::ffff:192.0.2.0/120"]).trusts("192.0.2.77")
    assert TrustedProxies([ipaddress.ip_network("192.0.2.0/24")]).trusts("::ffff:192.0.2.77")


def test_the_peer_is_written_in_one_way() -> None:
    assert TRUSTED.client("::ffff:203.0.113.9", []) == "203.0.113.9"
    assert TRUSTED.client("fe80::1%eth0", []) == "fe80::1"
    assert TRUSTED.client("testclient", forwarded(b"1.2.3.4")) == "testclient"


def test_a_peer_on_a_unix_socket_is_trusted_only_by_name() -> None:
    headers = forwarded(b"203.0.113.5")

    assert TRUSTED.client(None, headers) == UNIX_PEER
    assert TrustedProxies([UNIX_PEER]).client(None, headers) == "203.0.113.5"
    assert TrustedProxies([UNIX_PEER]).client(None, []) == UNKNOWN
    assert TrustedProxies([UNIX_PEER, "10.0.0.0/8"]).trusts(None)
    assert not TrustedProxies([UNIX_PEER]).trusts("127.0.0.1")


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "lan", ""])
def test_a_network_that_is_none_is_refused(network: str) -> None:
    with pytest.raises(ValueError):
        TrustedProxies([network])


@given(st.lists(st.binary(max_size=40)), st.sampled_from(["10.0.0.1", "203.0.113.9", "::1"]))
def test_whatever_comes_the_answer_is_an_address_or_unknown(lines: list[bytes], peer: str) -> None:
    for headers in (forwarded(*lines), [(b"forwarded", line) for line in lines]):
        client = TRUSTED.client(peer, headers)
        assert client == UNKNOWN or ipaddress.ip_address(client)
        assert TRUSTED.trusts(peer) or client != UNKNOWN


@given(st.binary(max_size=60))
def test_what_stands_left_of_an_untrusted_hop_changes_nothing(invention: bytes) -> None:
    assert TRUSTED.client("10.0.0.1", forwarded(invention, b"203.0.113.5, 10.0.0.2")) == "203.0.113.5"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:cb00:7109%1", "203.0.113.9"),
        ("64:ff9b::203.0.113.9", "203.0.113.9"),
        ("64:ff9b::cb00:7109", "203.0.113.9"),
        ("::1", "::/64"),
        ("unix:", "unix:"),
        ("testclient", "testclient"),
        ("x" * 200, "x" * 200),
    ],
)
def test_limits_count_the_64_of_an_ipv6_address_and_carried_ipv4_as_ipv4(address: str, expected: str) -> None:
    # Rule 5.11
    assert counted_as(address) == expected
    assert TrustedProxies(["10.0.0.0/8"]).counted_as(address, "10.0.0.1") == expected
    assert TrustedProxies([]).counted_as(address, "10.0.0.1") is None
