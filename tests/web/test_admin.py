"""What an administrator may do, and nobody else (A01, A02, A03, A07; C-07, C-08, C-09, D-01, D-09)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gatekeeper.dialects import DIALECTS
from gatekeeper.dialects.base import Needs, Operation
from tests.contracts.responses import error_body
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.sessions.by_hand import DAY, Hand
from tests.system.sidecar import Store, World, someone, token
from tests.tokens import forge
from tests.web.shapes import ADMIN, OPERATIONS, admin, assert_refused, named, target

AUDIENCE = "gatekeeper-tests"
DEBUG = "/debug/session-info"


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, rate_limit="off") as made:
        yield made


@pytest.fixture(scope="module")
def strict(store: Store) -> Iterator[World]:
    """Tokens must be for this audience."""
    with mounted(store, rate_limit="off", jwt_audience=AUDIENCE) as made:
        yield made


@pytest.fixture
def hand(store: Store) -> Iterator[Hand]:
    with Hand(store.url) as hand:
        yield hand


def stored(store: Store, user: str) -> Any:
    """Everything that the store holds of a user, but for how long it stays."""
    sessions, index, not_before = Hand.keys(user)
    return (
        store.client.hkeys(sessions),
        store.client.zrange(index, 0, -1, withscores=True),
        store.client.get(not_before),
    )


def victim(world: World, **claims: Any) -> tuple[str, int]:
    """A user with a live session, and its id."""
    user = someone()
    (session,) = world.passed("/", token(user, **claims)).get_all("x-session-id")
    return user, int(session)


# A01


def test_the_table_knows_who_must_be_an_administrator() -> None:
    """Written out once, so that an operation that forgets it is noticed: rule 7.2."""
    assert {(operation.method, operation.path) for _, operation in ADMIN} == {
        ("GET", "/admin/sessions/active"),
        ("POST", "/admin/sessions/cleanup"),
        ("GET", "/sessions/user/{user_id}"),
        ("DELETE", "/sessions/user/{user_id}"),
        ("DELETE", "/sessions/user/{user_id}/{id}"),
    }
    elsewhere = [each for each in OPERATIONS if each not in ADMIN and each[1].needs is not Needs.DEBUG]
    assert not [each for _, each in elsewhere if "admin" in each.path or "{user_id}" in each.path]


def expired() -> int:
    return int(time.time()) - 60


NOT_ADMINISTRATORS: list[tuple[str, dict[str, Any] | None, int, str]] = [
    ("no token", None, 401, "token_missing"),
    ("a user", {}, 403, "forbidden"),
    ("a user with other roles", {"roles": ["user", "auditor"]}, 403, "forbidden"),
    ("an administrator of yesterday", {"roles": ["admin"], "exp": expired()}, 401, "token_expired"),
    ("an administrator of elsewhere", {"roles": ["admin"], "aud": "elsewhere"}, 401, "token_invalid"),
    ("an administrator of nowhere", {"roles": ["admin"], "aud": ...}, 401, "token_invalid"),
    ("an administrator's refresh token", {"roles": ["admin"], "typ": "refresh"}, 401, "token_invalid"),
    ("an administrator of tomorrow", {"roles": ["admin"], "nbf": int(time.time()) + 86_400}, 401, "token_invalid"),
]


@pytest.mark.parametrize(
    ("who", "claims", "status", "code"), NOT_ADMINISTRATORS, ids=[each[0] for each in NOT_ADMINISTRATORS]
)
@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_nobody_but_an_administrator_gets_anywhere(
    strict: World, dialect: str, operation: Operation, who: str, claims: dict[str, Any] | None, status: int, code: str
) -> None:
    # A01
    user, session = victim(strict, aud=AUDIENCE)
    before = stored(strict.store, user)
    bearing = None if claims is None else token(someone(), **{"aud": AUDIENCE} | claims)
    spoofed = [("X-User-Roles", "admin"), ("X-Gatekeeper-Admin", "true"), ("X-HTTP-Method-Override", "GET")]
    for path in (target(operation, user, session), target(operation, user, session) + "/"):
        for headers in ([], spoofed):
            answer = strict.refused(path, bearing, method=operation.method, headers=headers)
            assert_refused(dialect, answer, status, code)
            assert user.encode() not in answer.body, who
    assert stored(strict.store, user) == before


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_an_administrators_session_that_is_over_is_no_administrators(
    strict: World, dialect: str, operation: Operation
) -> None:
    # A01
    user, session = victim(strict, aud=AUDIENCE)
    before = stored(strict.store, user)
    bearing = token(someone(), aud=AUDIENCE, roles=["admin"])
    strict.fetch("/sessions/logout", bearing, method="DELETE")
    answer = strict.refused(target(operation, user, session), bearing, method=operation.method)
    assert_refused(dialect, answer, 401, "access_token_blacklisted")
    assert stored(strict.store, user) == before


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_an_administrators_cookie_does_nothing_for_another_site(
    strict: World, dialect: str, operation: Operation
) -> None:
    # A01, S21; a GET changes nothing, and its answer can be read by no page of another site
    user, session = victim(strict, aud=AUDIENCE)
    before = stored(strict.store, user)
    cookie = ("Cookie", f"access_token={token(someone(), aud=AUDIENCE, roles=['admin'])}")
    for site in ([("Sec-Fetch-Site", "cross-site")], [("Origin", "https://evil.example")], [("Origin", "null")], []):
        path = target(operation, user, session)
        answer = strict.fetch(path, method=operation.method, headers=[cookie, *site])
        if operation.method == "GET":
            assert answer.status == 200
            assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
        else:
            assert_refused(dialect, answer, 403, "origin_not_allowed")
    assert stored(strict.store, user) == before


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_an_administrator_gets_there(strict: World, dialect: str, operation: Operation) -> None:
    user, session = victim(strict, aud=AUDIENCE)
    bearing = token(someone(), aud=AUDIENCE, roles=["admin"])
    assert strict.fetch(target(operation, user, session), bearing, method=operation.method).status == 200
    assert operation in DIALECTS[dialect].operations


# A02


@pytest.mark.parametrize(
    "roles",
    [
        *("admin", ["admin"], "user admin", "admin user", ["user", "admin"], ["admin", "admin"], True, ["admin", ""]),
        *("admin,user", "user, admin", {"admin": True}, {"admin": 1, "user": False}, [{"name": "admin"}]),
        *([{"authority": "admin", "name": "x"}], [{"name": "admin", "enabled": True}, "user"]),
    ],
    ids=repr,
)
def test_these_forms_of_the_claim_make_an_administrator(world: World, roles: Any) -> None:
    # A02, ROLES_CLAIM: a list, an object, or a string split at spaces and commas, or a boolean
    assert world.fetch("/admin/sessions/active", token(someone(), roles=roles)).status == 200


@pytest.mark.parametrize(
    "roles",
    [
        *("Admin", "ADMIN", "administrator", "admins", "superadmin", "user;admin", "admin\tuser", ""),
        *("user", "ädmin", "\u0430dmin", "admin\u200b", "role:admin", "*"),
        *(
            {"admin": False},
            {"admin": None, "user": True},
            {"admin": 0},
            {"admin": ""},
            {"admin": []},
            {"Admin": True},
            {"roles": ["admin"]},
            [["admin"]],
            [{"name": "admin", "enabled": False}],
            [{"name": "admin", "active": False}],
            [{"authority": "user", "name": "admin"}],
            [{"role": "admin"}],
            ["user admin"],
            [" admin"],
            ["Admin"],
        ),
        *(["admin", 1], ["admin", None], [True], 1, 1.0, None, False, [], "true", ...),
    ],
    ids=repr,
)
def test_no_other_form_does(world: World, roles: Any) -> None:
    # A02
    answer = world.refused("/admin/sessions/active", token(someone(), roles=roles))
    assert_refused("fastapi", answer, 403, "forbidden")


def test_a_claim_of_another_name_and_one_given_twice_make_none(world: World) -> None:
    # A02
    for name in ("role", "Roles", "roles ", "groups", "scope", "admin", "is_admin", "realm_access"):
        assert_refused(
            "fastapi", world.refused("/admin/sessions/active", token(someone(), **{name: ["admin"]})), 403, "forbidden"
        )
    now = int(time.time())
    for first, second in (('["user"]', '["admin"]'), ('["admin"]', '["user"]')):
        twice = f'{{"sub":"{someone()}","iat":{now},"exp":{now + 600},"roles":{first},"roles":{second}}}'
        answer = world.refused("/admin/sessions/active", forge.payload_token(twice))
        assert_refused("fastapi", answer, 401, "token_invalid")


def test_a_claim_of_the_operators_choice(store: Store) -> None:
    # ROLES_CLAIM, ADMIN_ROLES: a dotted path, a boolean, other words
    with mounted(store, rate_limit="off", roles_claim="realm_access.roles", admin_roles="Operator,root") as world:
        for claims, status in (
            ({"realm_access": {"roles": ["Operator"]}}, 200),
            ({"realm_access": {"roles": "x root"}}, 200),
            ({"realm_access": {"roles": ["operator"]}}, 403),
            ({"roles": ["Operator"]}, 403),
            ({"realm_access": {"roles": ["admin"]}}, 403),
            ({"realm_access": ["Operator"]}, 403),
        ):
            assert world.fetch("/admin/sessions/active", token(someone(), **claims)).status == status
    with mounted(store, rate_limit="off", roles_claim="is_staff") as world:
        for value, status in ((True, 200), (False, 403), ("true", 403), (1, 403), (None, 403), ([True], 403)):
            assert world.fetch("/admin/sessions/active", token(someone(), is_staff=value)).status == status


# A03


def spellings(path: str) -> list[str]:
    """Ways to write a path that some backend would read as this one (P01…P18)."""
    _, first, rest = path.split("/", 2)
    return [
        f"//{first}/{rest}",
        f"/{first}//{rest}",
        f"/x/../{first}/{rest}",
        f"/x/%2e%2e/{first}/{rest}",
        f"/x/.%2E/{first}/{rest}",
        f"/x/..%2f{first}/{rest}",
        f"/./{first}/{rest}",
        f"/{first}/./{rest}",
        f"/{first}%2f{rest}",
        f"/{first}\\{rest}",
        f"/{first}%5c{rest}",
        f"/x\\..\\{first}/{rest}",
        f"/{first};x=1/{rest}",
        f"/{first}/{rest};x",
        f"/x;/../{first}/{rest}",
        f"/{first.upper()}/{rest}",
        f"/{first.capitalize()}/{rest}",
        f"/%{ord(first[0]):02x}{first[1:]}/{rest}",
        f"/{first}/{rest}/.",
        f"/{first}/{rest}//",
        f"/{first}/{rest}/x/..",
    ]


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_another_spelling_of_an_administrators_path_leads_nowhere(
    world: World, dialect: str, operation: Operation
) -> None:
    # A03: neither to what it would do nor to the backend, whoever asks
    user, session = victim(world)
    before, reached = stored(world.store, user), len(world.reached)
    for path in spellings(target(operation, user, session)):
        # "74;x" is the name of a user, and "." an id, as they stand: an own path then, of somebody who is not there.
        literal = "{" in operation.path and path.endswith((";x", "/.")) and dialect == "mockstream"
        for bearing in (None, token(someone())):
            answer = world.refused(path, bearing, method=operation.method)
            assert answer.status in ({400, 401, 403} if literal else {400}), path
        answer = world.fetch(path, admin(), method=operation.method)
        assert answer.status in ({200, 400, 404} if literal else {400}), path
        assert user.encode() not in answer.body
    assert stored(world.store, user) == before
    assert world.reached[reached:] == []


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_bytes_that_no_path_has_lead_nowhere(world: World, dialect: str, operation: Operation) -> None:
    # A03, P11, P12
    user, session = victim(world)
    path = target(operation, user, session)
    for hostile in (f"{path}%00", f"{path}%zz", f"/%c0%ae{path}", f"{path}%"):
        for bearing in (None, admin()):
            assert world.refused(hostile, bearing, method=operation.method).status == 400
    assert world.store.live(user) == 1
    assert dialect in DIALECTS


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_what_is_encoded_twice_is_another_path_and_protected(world: World, dialect: str, operation: Operation) -> None:
    # A03, P06, P13: decoded once and no more, so it is the backend's, byte for byte
    user, session = victim(world)
    path = target(operation, user, session)
    for other in (path.replace("s", "%2573", 1), f"/x/%252e%252e{path}", path.replace("s", "%EF%BD%93", 1)):
        assert_refused("fastapi", world.refused(other, method=operation.method), 401, "token_missing")
        assert world.passed(other, admin(), method=operation.method).target == other
    assert world.store.live(user) == 1
    assert dialect in DIALECTS


@pytest.mark.parametrize(("dialect", "operation"), ADMIN, ids=named)
def test_other_methods_on_an_administrators_path_are_the_backends(
    world: World, dialect: str, operation: Operation
) -> None:
    # Rule 3.3: forwarded as protected
    path = target(operation)
    ours = {each.method for _, each in ADMIN if target(each) == path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - ours:
        assert_refused("fastapi", world.refused(path, method=method), 401, "token_missing")
        assert world.passed(path, token(someone()), method=method).method == method
    assert dialect in DIALECTS


# A07, C-07, D-09


def listed(world: World, bearing: str, query: str = "") -> Any:
    answer = world.fetch(f"/admin/sessions/active{query}", bearing)
    assert answer.status == 200, answer
    return json.loads(answer.body)


def test_an_administrator_who_ends_their_own_session_did_it_as_one(world: World) -> None:
    # A07, rule 4.10: "every admin path, the admin's own id too"
    for all_of_them in (False, True):
        user = someone()
        bearing, other = admin(user), token(user)
        world.passed("/", other)
        (mine, _) = world.session_ids(bearing)
        path = f"/sessions/user/{user}" + ("" if all_of_them else f"/{mine}")
        assert world.fetch(path, bearing, method="DELETE").status == 200
        assert world.refused("/", bearing).body == error_body("session_revoked_or_invalid", "revoked_by_admin")
        assert (world.fetch("/", other).status == 200) is not all_of_them


def test_an_administrator_may_spare_the_own_session_only_where_it_is_that_users(world: World) -> None:
    # Rule 4.4
    me, (user, _) = someone(), victim(world)
    bearing, phone = admin(me), token(me)
    world.passed("/", phone)
    for owner, count in ((user, 1), (me, 1)):
        answer = world.fetch(f"/sessions/user/{owner}?exclude_current=true", bearing, method="DELETE")
        assert json.loads(answer.body)["closed_count"] == count
    assert world.refused("/", phone).status == 401
    world.passed("/", bearing)


def test_a_session_of_another_user_is_not_ended_under_a_wrong_name(world: World) -> None:
    # S13, rule 4.5
    (user, session), (other, _) = victim(world), victim(world)
    answer = world.fetch(f"/sessions/user/{other}/{session}", admin(), method="DELETE")
    assert_refused("mockstream", answer, 404, "session_not_found")
    assert world.store.live(user) == world.store.live(other) == 1


def test_active_sessions_are_the_administrators_own_or_those_of_a_user(world: World) -> None:
    # C-07
    me, them = someone(), someone()
    bearing = admin(me)
    for number in range(2):
        world.passed("/", token(them, jti=f"{them}-{number}"))
    own = listed(world, bearing)
    assert list(own) == ["user_id", "active_sessions", "sessions"]
    assert (own["user_id"], own["active_sessions"], len(own["sessions"])) == (int(me), 1, 1)
    theirs = listed(world, bearing, f"?user_id={them}")
    assert (theirs["user_id"], theirs["active_sessions"]) == (int(them), 2)
    assert [row["jti"] for row in theirs["sessions"]] == [f"{them}-1", f"{them}-0"]
    assert list(theirs["sessions"][0]) == ["jti", "created_at", "last_activity", "expires_at"]


@pytest.mark.parametrize("user", ["nobody-at-all", "", "%00", "{}", "*", "%F0%9F%98%80", "a%2Fb", "x" * 4_000, "%FF"])
def test_an_unknown_user_has_no_sessions(world: World, user: str) -> None:
    # C-07, rule 4.5
    found = listed(world, admin(), f"?user_id={user}")
    assert (found["active_sessions"], found["sessions"]) == (0, [])
    if user and "%00" not in user:
        assert world.fetch(f"/sessions/user/{user}", admin()).body == b"[]"
        answer = world.fetch(f"/sessions/user/{user}", admin(), method="DELETE")
        assert json.loads(answer.body)["closed_count"] == 0


def test_a_user_that_is_named_twice_is_nobody(world: World) -> None:
    answer = world.fetch("/admin/sessions/active?user_id=1&user_id=2", admin())
    assert assert_refused("fastapi", answer, 400, "bad_request") == "user_id must be given once"


# C-08


def clean_up(world: World, bearing: str) -> int:
    answer = world.fetch("/admin/sessions/cleanup", bearing, method="POST")
    body = json.loads(answer.body)
    assert (answer.status, list(body)) == (200, ["cleaned_sessions"])
    return int(body["cleaned_sessions"])


def test_a_clean_up_counts_the_idle_and_the_expired_of_all_users_once(world: World, hand: Hand) -> None:
    # C-08
    bearing = admin()
    clean_up(world, bearing)
    users = [someone() for _ in range(30)]
    for user in users:
        world.passed("/", token(user))
        world.passed("/", token(user, exp=int(time.time()) + 10 * 86_400))
    for number, user in enumerate(users):
        if number % 3:
            hand.let_pass((0, 1_800, DAY)[number % 3], user)
    assert clean_up(world, bearing) == 40
    assert clean_up(world, bearing) == 0
    for number, user in enumerate(users):
        assert len(json.loads(world.fetch(f"/sessions/user/{user}?include_inactive=true", bearing).body)) == (
            0 if number % 3 else 2
        )
    assert world.fetch("/sessions/me", bearing).status == 200


def test_what_was_cleaned_up_says_still_why_it_is_over(world: World, hand: Hand) -> None:
    user = someone()
    bearing = token(user, exp=int(time.time()) + 86_400)
    world.passed("/", bearing)
    hand.let_pass(3_600, user)
    assert clean_up(world, admin()) >= 1
    assert world.refused("/", bearing).body == error_body("session_inactivity_timeout", "idle")


# C-09


def info(world: World, bearing: str) -> ClientResponse:
    return world.fetch(DEBUG, bearing)


def test_session_info_is_an_administrators_by_default(world: World) -> None:
    # C-09, A08, DEBUG_ENDPOINTS=false
    assert_refused("fastapi", info(world, token(someone())), 403, "forbidden")
    assert_refused("fastapi", world.refused(DEBUG), 401, "token_missing")
    assert info(world, admin()).status == 200


def test_session_info_is_everybodys_where_it_is_switched_on(store: Store) -> None:
    # C-09
    with mounted(store, rate_limit="off", debug_endpoints="true") as world:
        user = someone()
        world.passed("/", token(user))
        for bearing in (token(user, jti="of-the-user"), token(user, jti="of-the-user", roles=["admin"])):
            answer = info(world, bearing)
            assert json.loads(answer.body) == {
                "user_id": int(user),
                "jti": "of-the-user",
                "session_valid": True,
                "active_sessions": 2,
            }
        assert_refused("fastapi", world.refused(DEBUG), 401, "token_missing")
        # It opens nothing else.
        assert_refused("fastapi", world.refused("/admin/sessions/active", token(user, jti="x")), 403, "forbidden")
