"""How often Gatekeeper's own endpoints may be called: per user, and per client address (A-24)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.dialects.base import Operation
from gatekeeper.messages import CATALOGUES
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, someone, token
from tests.web.shapes import ENDS, OPERATIONS, READS, admin, assert_refused, named, target

# One call a day, so that no test is slow enough to be given a second one.
ONCE = "1/24h"


@pytest.fixture(scope="module")
def once(store: Store) -> Iterator[World]:
    with mounted(store, rate_limit=ONCE) as made:
        yield made


@pytest.fixture(scope="module")
def proxied(store: Store) -> Iterator[World]:
    """Behind a proxy that is trusted."""
    with mounted(store, rate_limit=ONCE, trusted_proxies="127.0.0.0/8") as made:
        yield made


def from_address(address: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", address)]


def new_address() -> str:
    """An address in a /64 of 2001:db8::/32 that nobody used before."""
    number = int(someone())
    return f"2001:db8:{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}::1"


def assert_limited(dialect: str, answer: ClientResponse) -> None:
    text = assert_refused(dialect, answer, 429, "rate_limited")
    assert text == "Too many requests, try again later"
    (seconds,) = answer.get_all("retry-after")
    assert 86_000 < int(seconds) <= 86_400
    assert answer.get_all("www-authenticate") == []


@pytest.mark.parametrize(("dialect", "operation"), OPERATIONS, ids=named)
def test_who_calls_too_often_is_told_so_in_the_dialect_that_was_asked(
    once: World, dialect: str, operation: Operation
) -> None:
    # every operation there is
    user = someone()
    bearing = admin(user)
    assert once.fetch("/sessions/me", bearing).status == 200
    for _ in range(2):
        answer = once.refused(target(operation, user), bearing, method=operation.method)
        assert_limited(dialect, answer)
    # Refused is not done.
    assert once.store.live(user) == 1


@pytest.mark.parametrize("dialect", READS)
def test_the_first_call_passes(once: World, dialect: str) -> None:
    assert once.fetch(READS[dialect], admin()).status == 200
    method, path = ENDS[dialect]
    assert once.fetch(path, admin(), method=method).status == 200


def test_express_says_it_in_the_words_of_http(once: World) -> None:  # B-05
    bearing = token(someone())
    once.fetch("/sessions/me", bearing)
    assert b'"message":"Too Many Requests","error":{"code":"RATE_LIMITED"' in once.fetch("/api/sessions", bearing).body


def test_it_is_said_in_the_language_of_the_caller(once: World) -> None:
    bearing = token(someone())
    once.fetch("/sessions/me", bearing)
    answer = once.fetch("/sessions/me", bearing, headers=[("Accept-Language", "fr")])
    text = assert_refused("mockstream", answer, 429, "rate_limited")
    assert text == CATALOGUES["fr"]["Too many requests, try again later"]


def test_a_user_is_one_with_all_tokens_and_in_all_dialects(once: World) -> None:
    user = someone()
    assert once.fetch("/sessions/me", token(user)).status == 200
    assert once.fetch("/api/sessions", token(user)).status == 429
    assert once.fetch("/sessions/logout", token(user), method="DELETE").status == 429


def test_users_are_independent(once: World) -> None:
    for _ in range(10):
        assert once.fetch("/sessions/me", token(someone())).status == 200


def test_forwarded_requests_are_never_limited(once: World) -> None:
    user = someone()
    bearing = token(user)
    once.fetch("/sessions/me", bearing)
    for _ in range(10):
        once.passed("/protected", bearing)
    assert once.fetch("/sessions/me", bearing).status == 429


def test_what_is_no_good_token_is_refused_as_such_and_costs_nobody_anything(once: World) -> None:
    user = someone()
    for bearing in (None, "x", token(user, exp=1), token(user, aud=["x"]) + "x"):
        for _ in range(3):
            assert once.refused("/sessions/me", bearing).status == 401
    assert once.fetch("/sessions/me", token(user)).status == 200


def test_the_description_is_open_to_everybody(once: World) -> None:
    for _ in range(5):
        assert once.fetch("/_gatekeeper/openapi.json").status == 200


def test_an_ended_session_is_an_ended_session_although_it_asks_too_often(once: World) -> None:
    bearing = token(someone())
    once.fetch("/sessions/logout", bearing, method="DELETE")
    for _ in range(3):
        assert_refused("mockstream", once.refused("/sessions/me", bearing), 401, "access_token_blacklisted")


def test_off_is_off(store: Store) -> None:
    user = someone()
    with mounted(store, rate_limit="off", trusted_proxies="127.0.0.0/8") as world:
        for _ in range(300):
            assert world.fetch("/sessions/me", token(user, jti="a"), headers=from_address("203.0.113.1")).status == 200
        assert store.client.keys(f"*rate:*{user}*") == []


def test_two_gatekeepers_share_one_limit(once: World, store: Store) -> None:
    user = someone()
    with mounted(store, rate_limit=ONCE) as other:
        assert once.fetch("/sessions/me", token(user)).status == 200
        assert other.fetch("/sessions/me", token(user)).status == 429


# Addresses


def test_an_address_has_four_times_the_limit_of_a_user(proxied: World) -> None:
    address = new_address()
    for _ in range(4):
        assert proxied.fetch("/sessions/me", token(someone()), headers=from_address(address)).status == 200
    answer = proxied.fetch("/sessions/me", token(someone()), headers=from_address(address))
    assert_refused("mockstream", answer, 429, "rate_limited")
    (seconds,) = answer.get_all("retry-after")
    assert 21_500 < int(seconds) <= 21_600
    assert proxied.fetch("/sessions/me", token(someone()), headers=from_address(new_address())).status == 200


def test_every_address_of_a_64_is_one_client(proxied: World) -> None:
    # Rule 5.11: a client has all of them, and may use another one for each call
    network = new_address().removesuffix("::1")
    hosts = ["::1", "::2", ":ffff:ffff:ffff:ffff", ":a:b:c:d", "::dead:beef", "::1"]
    statuses = [
        proxied.fetch("/sessions/me", token(someone()), headers=from_address(network + host)).status for host in hosts
    ]
    assert statuses == [200] * 4 + [429] * 2


def test_an_ipv4_address_is_one_client_however_ipv6_carries_it(proxied: World) -> None:
    # Rule 5.11
    number = int(someone())
    address = f"192.0.{number >> 8 & 0xFF}.{number & 0xFF}"
    forms = [address, f"::ffff:{address}", f"[::ffff:{address}]:443", f"64:ff9b::{address}", address]
    statuses = [proxied.fetch("/sessions/me", token(someone()), headers=from_address(form)).status for form in forms]
    assert statuses == [200] * 4 + [429]


def test_the_client_cannot_choose_its_address(proxied: World) -> None:
    # I01: the right-most untrusted one counts, whatever stands left of it
    address = new_address()
    statuses = [
        proxied.fetch("/sessions/me", token(someone()), headers=from_address(f"{new_address()}, {address}")).status
        for _ in range(5)
    ]
    assert statuses == [200] * 4 + [429]


def test_a_peer_that_may_be_a_proxy_that_nobody_told_us_of_is_not_counted(once: World) -> None:
    # Rule 5.11
    for _ in range(8):
        assert once.fetch("/sessions/me", token(someone()), headers=from_address("203.0.113.7")).status == 200
    assert once.store.client.keys("*rate:address:127.0.0.1") == []
    assert once.store.client.keys("*rate:address:203.0.113.7") == []


def test_a_private_peer_is_counted_once_the_proxies_are_known(store: Store) -> None:
    store.client.delete("gk:rate:address:127.0.0.1")
    with mounted(store, rate_limit=ONCE, trusted_proxies="10.0.0.0/8") as world:
        statuses = [world.fetch("/sessions/me", token(someone())).status for _ in range(5)]
    assert statuses == [200] * 4 + [429]
    store.client.delete("gk:rate:address:127.0.0.1")


def test_an_address_is_counted_by_every_call_from_it(proxied: World) -> None:
    """Those that are refused to their user too: what one person sends is what an address is limited for."""
    address, user = new_address(), someone()
    statuses = [proxied.fetch("/sessions/me", token(user), headers=from_address(address)).status for _ in range(4)]
    assert statuses == [200, 429, 429, 429]
    assert proxied.fetch("/sessions/me", token(someone()), headers=from_address(address)).status == 429
