"""Tokens beside the one that decides: several cookies of one name, and tokens where no source looks.

T22, T24; rules 3.8 and 3.23. Each is tried in the middleware and in the sidecar.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.middleware.host import mounted, sidecar_app
from tests.system.sidecar import Backend, Store, World, bearer, someone, token
from tests.tokens import forge

OPTIONS: dict[str, Any] = {"rate_limit": "off", "device_limit": "off", "public_paths": "/public/*"}


@pytest.fixture(scope="module", params=["middleware", "sidecar"])
def world(store: Store, request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "middleware":
        with mounted(store, **OPTIONS) as made:
            yield made
        return
    with Backend() as backend, sidecar_app(store, backend, **OPTIONS) as made:
        yield made


def live(world: World, user: str, **claims: object) -> str:
    bearing = token(user, **claims)
    world.passed("/", bearing)
    return bearing


def ended(world: World, user: str, **claims: object) -> str:
    bearing = live(world, user, **claims)
    assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200
    return bearing


def cookies(*pairs: str) -> tuple[str, str]:
    return ("Cookie", "; ".join(pairs))


# Several cookies of one name


def stale(world: World, user: str) -> dict[str, str]:
    now = int(time.time())
    return {
        "forged": forge.token(forge.OTHER_SECRET, sub=user, iat=now, exp=now + 600),
        "expired": token(user, exp=now - 60),
        "ended": ended(world, user),
        "of another user, ended": ended(world, someone()),
        "junk": "junk",
        "empty": "",
        "none": forge.hs({"alg": "none"}, {"sub": user, "exp": now + 600}),
        "refresh": token(user, token_type="refresh"),
    }


def test_a_stale_twin_is_left_out_of_what_is_judged_and_forwarded(world: World) -> None:  # T24
    user = someone()
    good = live(world, user)
    for kind, text in stale(world, user).items():
        for first, second in ((text, good), (good, text)):
            pairs = ["a=1", f"access_token={first}", " b=%22;c", f"access_token={second}", "d=4"]
            request = world.passed("/", headers=[cookies(*pairs)])
            assert request.get_all("x-user-id") == [user], kind
            kept = [pair for pair in pairs if pair != f"access_token={text}"]
            assert request.get_all("cookie") == ["; ".join(kept)], kind


def test_twins_of_one_session_are_one(world: World) -> None:  # T24
    user, sid = someone(), forge.sha256_hex(someone().encode())
    one, other = live(world, user, sid=sid), live(world, user, sid=sid, n=2)
    sent = cookies(f"access_token={one}", f"access_token={other}", f'access_token="Bearer {one}"')
    request = world.passed("/", headers=[sent])
    assert (request.get_all("x-user-id"), request.get_all("cookie")) == ([user], [sent[1]])


@pytest.mark.parametrize("other", ["same user", "another user", "never seen", "never seen of another user"])
def test_two_good_twins_are_never_chosen_from(world: World, other: str) -> None:  # T24
    # A tossed cookie: the attacker's own good token beside the victim's.
    user = someone()
    good = live(world, user)
    second = user if other == "same user" or other == "never seen" else someone()
    tossed = token(second) if "never" in other else live(world, second)
    before = world.store.live(user)
    for first, last in ((good, tossed), (tossed, good)):
        answer = world.refused("/", headers=[cookies(f"access_token={first}", f"access_token={last}")])
        assert (answer.status, b"token_invalid" in answer.body) == (401, True)
    # Nothing was adopted or touched, and neither is worse off.
    assert world.store.live(user) == before
    assert world.passed("/", good).get_all("x-user-id") == [user]


def test_twins_that_are_all_over_are_refused_as_the_first(world: World) -> None:
    one, other = ended(world, someone()), ended(world, someone())
    answer = world.refused("/", headers=[cookies(f"access_token={one}", f"access_token={other}")])
    assert (answer.status, b"access_token_blacklisted" in answer.body) == (401, True)


def test_only_so_many_twins_are_looked_at(world: World) -> None:
    user, sid = someone(), forge.sha256_hex(someone().encode())
    good = [live(world, user, sid=sid, n=number) for number in range(5)]
    four = [f"access_token={text}" for text in good[:4]]
    assert world.passed("/", headers=[cookies(*four)]).get_all("x-user-id") == [user]
    assert world.refused("/", headers=[cookies(*four, f"access_token={good[4]}")]).status == 401
    # What cannot be a token costs nothing and does not count.
    junk = [f"access_token=junk{number}" for number in range(200)]
    assert world.passed("/", headers=[cookies(*junk, four[0])]).get_all("cookie") == [four[0]]


def test_twins_cost_one_more_round_trip(world: World) -> None:
    user = someone()
    good, over = live(world, user), ended(world, user)
    before = world.store.scripts_run
    world.passed("/", headers=[cookies(f"access_token={over}", f"access_token={good}")])
    assert world.store.scripts_run - before == 3


def test_a_twin_beside_a_bearer_is_never_another_user(world: World) -> None:  # T22
    user = someone()
    good = live(world, user)
    twins = cookies(f"access_token={live(world, user)}", f"access_token={live(world, someone())}")
    assert world.refused("/", good, headers=[twins]).status == 401
    fine = cookies(f"access_token={live(world, user)}", "access_token=junk", "a=1")
    assert world.passed("/", good, headers=[fine]).get_all("cookie") == ["a=1"]


def test_a_logout_with_twins_ends_the_live_one(world: World) -> None:  # S20
    user = someone()
    good, over = live(world, user), ended(world, user)
    for extra in ([], [f"access_token=junk{number}" for number in range(9)]):
        good = live(world, user)
        sent = cookies(*extra, f"access_token={over}", f"access_token={good}")
        assert world.fetch("/auth/logout", method="POST", headers=[sent]).status == 200
        assert world.refused("/", good).status == 401
    one, other = live(world, user), live(world, user)
    sent = cookies(f"access_token={one}", f"access_token={other}")
    # Never 200 with a session alive.
    assert world.fetch("/auth/logout", method="POST", headers=[sent]).status == 401


# Sources that cannot be read


@pytest.fixture(scope="module")
def many(store: Store) -> Iterator[World]:
    with mounted(store, token_sources="cookie:access_token,header,header:X-Access-Token", **OPTIONS) as made:
        yield made


def malformed(text: str) -> list[list[tuple[str, str]]]:
    return [
        [("Authorization", f"Bearer  {text}")],
        [("Authorization", f"Bearer\t{text}")],
        [("Authorization", f"Bearer {text},x")],
        [("Authorization", f'Bearer "{text}"')],
        [("X-Access-Token", text), ("X-Access-Token", "x")],
        [("X-Access-Token", f"{text} x")],
    ]


def test_what_a_later_source_holds_that_is_no_token_never_goes_on(many: World) -> None:  # T22
    user = someone()
    good, over = live(many, user), ended(many, user)
    for headers in [*malformed(over), *malformed("opaque")]:
        request = many.passed("/", headers=[cookies(f"access_token={good}"), *headers])
        assert request.get_all("x-user-id") == [user]
        assert (request.get_all("authorization"), request.get_all("x-access-token")) == ([], []), headers


@pytest.mark.parametrize("make", [live, ended])
def test_another_users_token_in_a_malformed_later_source_is_refused(many: World, make: Any) -> None:  # T22
    good, other = live(many, someone()), make(many, someone())
    for headers in malformed(other):
        answer = many.refused("/", headers=[cookies(f"access_token={good}"), *headers])
        assert (answer.status, b"token_invalid" in answer.body) == (401, True), headers


# Stray tokens


def places(text: str) -> list[tuple[str, str]]:
    return [
        ("X-Access-Token", text),
        ("X-Auth-Token", f"Bearer {text}"),
        ("x_access_token", text),
        ("X-Auth.Token", text),
        ("Cookie", f"a=1; other={text}; b=2"),
        ("Cookie", f'a=1; other="Bearer {text}"; b=2'),
        ("Cookie", f"a=1; {text}; b=2"),
        ("Cookie", f"a=1; {text}=x; b=2"),
        # As Express signs cookies.
        ("Cookie", f"a=1; other=s%3A{text}.W0p%2B1; b=2"),
        ("Cookie", f"a=1; other=s:{text}.W0p; b=2"),
        ("Cookie", f"a=1; other=v1.{text}; b=2"),
        ("Cookie", f"a=1; other=%7B%22t%22%3A%22{text}%22%7D; b=2"),
    ]


@pytest.mark.parametrize("whose", ["own", "another user's"])
def test_a_stray_token_that_is_over_is_removed(world: World, whose: str) -> None:
    user = someone()
    good = live(world, user)
    over = ended(world, user if whose == "own" else someone())
    for name, value in places(over):
        request = world.passed("/", good, headers=[(name, value)])
        assert over not in str(request), name
        assert request.get_all("authorization") == [f"Bearer {good}"]
        assert request.get_all("cookie") == (["a=1; b=2"] if name == "Cookie" else [])


@pytest.mark.parametrize("scheme", ["JWT", "Token", "DPoP", "Custom", ""])
def test_a_stray_token_under_another_scheme_is_removed(world: World, scheme: str) -> None:
    user = someone()
    good, over = live(world, user), ended(world, user)
    stray = ("Authorization", f"{scheme} {over}".strip())
    request = world.passed("/", headers=[stray, cookies(f"access_token={good}")])
    assert (request.get_all("authorization"), request.get_all("x-user-id")) == ([], [user])


@pytest.mark.parametrize("name", ["access_token", "token", "jwt", "auth", "acc%65ss_token"])
def test_a_stray_token_in_the_query_that_is_over_is_refused(world: World, name: str) -> None:
    user = someone()
    good, over = live(world, user), ended(world, user)
    for target in (
        f"/?{name}={over}",
        f"/?a=1&{name}={over.replace('.', '%2E')}&b",
        f"/?{name}=Bearer%20{over}",
        f"/?a=1;{name}={over}",
    ):
        answer = world.refused(target, good)
        assert (answer.status, b"access_token_blacklisted" in answer.body) == (401, True)
    assert world.passed(f"/?{name}={good}", good).target == f"/?{name}={good}"
    assert world.passed(f"/?other={over}", good)


def test_what_is_not_over_or_does_not_verify_stays(world: World) -> None:
    user = someone()
    good, now = live(world, user), int(time.time())
    kept = [
        live(world, user),
        token(user),
        forge.token(forge.OTHER_SECRET, sub=user, iat=now, exp=now + 600),
        token(user, exp=now - 60),
        token(user, token_type="refresh"),
        "1.2.3",
        "www.example.com",
        "eyJ.eyJ.x",
    ]
    before = world.store.live(user)
    for text in kept:
        for name, value in places(text):
            request = world.passed("/", good, headers=[(name, value)])
            assert value in [sent for _, sent in request.headers], (name, text)
        for target in (f"/?token={text}", f"/?a=1;token={text};b"):
            assert world.passed(target, good).target == target
    # Neither adopted nor touched.
    assert world.store.live(user) == before


def test_a_live_stray_of_another_user_is_removed_from_headers_only(world: World) -> None:
    good, other = live(world, someone()), live(world, someone())
    for name, value in places(other):
        request = world.passed("/", good, headers=[(name, value)])
        assert (value in [sent for _, sent in request.headers]) is (name == "Cookie")
    assert world.passed(f"/?token={other}", good)


def test_a_stray_of_before_the_end_of_all_is_over(world: World) -> None:
    user, admin = someone(), token(someone(), roles=["admin"])
    old = token(user)
    assert world.fetch(f"/sessions/user/{user}", admin, method="DELETE").status == 200
    good = live(world, someone())
    assert old not in str(world.passed("/", good, headers=[cookies(f"other={old}")]))


def test_at_most_four_strays_are_verified(world: World) -> None:
    user = someone()
    good, now = live(world, user), int(time.time())
    plausible = [forge.token(forge.OTHER_SECRET, sub=user, iat=now, exp=now + 600, n=number) for number in range(5)]
    junk = [f"j{number}=1.2.{number}" for number in range(200)]
    four = [f"c{number}={text}" for number, text in enumerate(plausible[:4])]
    assert world.refused("/", good, headers=[cookies(*four, f"c5={plausible[4]}")]).status == 401
    sent = cookies(*four, *junk)
    assert world.passed("/", good, headers=[sent]).get_all("cookie") == [sent[1]]
    assert world.refused("/", good, headers=[cookies(*(f"j{n}=eyJ.b.{n}" for n in range(80)))]).status == 401
    # Those four are remembered as refused, so there is room for others.
    over = ended(world, user)
    assert over not in str(world.passed("/", good, headers=[cookies(*four, f"c5={over}")]))


def test_strays_cost_no_further_round_trip_for_the_same_user(world: World) -> None:
    user = someone()
    good, over = live(world, user), ended(world, user)
    before = world.store.scripts_run
    world.passed("/", good, headers=[cookies(f"other={over}")])
    assert world.store.scripts_run - before == 2


def test_strays_on_public_paths(world: World) -> None:
    user = someone()
    good, over = live(world, user), ended(world, user)
    for credentials in ([], [bearer(good)], [bearer("junk")]):
        for name, value in places(over):
            assert over not in str(world.passed("/public/a", headers=[*credentials, (name, value)]))
        assert world.refused(f"/public/a?access_token={over}", headers=credentials).status == 401
        # Links lead there from anywhere: only the name of the RFC counts.
        assert world.passed(f"/public/a?token={over}", headers=credentials)
    now = int(time.time())
    five = [forge.token(forge.OTHER_SECRET, sub=user, iat=now, exp=now + 600, n=number, p=1) for number in range(5)]
    request = world.passed("/public/a", headers=[cookies(*(f"c{n}={text}" for n, text in enumerate(five)), "d=1")])
    assert request.get_all("cookie") == ["d=1"]


@pytest.mark.parametrize("path", ["/auth/login", "/auth/logout"])
def test_sign_in_paths_are_excepted(world: World, path: str) -> None:
    over = ended(world, someone())
    request = world.passed(path, method="POST", headers=[("X-Access-Token", over)])
    assert request.get_all("x-access-token") == [over]


_PIECES = st.lists(
    st.tuples(st.sampled_from(["access_token", "other", "=access_token", "x"]), st.integers(0, 5)), max_size=6
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=_PIECES, header=st.integers(-1, 5), stray=st.integers(-1, 5))
def test_whatever_stands_beside_it_no_token_that_is_over_goes_on(
    world: World, pieces: list[tuple[str, int]], header: int, stray: int
) -> None:
    texts = _texts(world)
    headers = [("Cookie", "; ".join(f"{name}={texts[number]}" for name, number in pieces))] if pieces else []
    headers += [bearer(texts[header])] if header >= 0 else []
    headers += [("X-Auth-Token", texts[stray])] if stray >= 0 else []
    before = len(world.reached)
    answer = world.fetch("/", headers=headers)
    assert answer.status in (200, 401)
    for request in world.reached[before:]:
        assert len(request.get_all("x-user-id")) == 1
        assert not any(over in str(request) for over in texts[3:5]), request
        assert not re.search(r"(?:^|;)\s*access_token=junk", str(request.get_all("cookie")))


_made: dict[str, list[str]] = {}


def _texts(world: World) -> list[str]:
    """Two sessions of one user, one of another, two that are over, and junk."""
    if world.url not in _made:
        user = someone()
        good = [live(world, user), live(world, user), live(world, someone())]
        _made[world.url] = [*good, ended(world, user), ended(world, someone()), "junk"]
    return _made[world.url]
