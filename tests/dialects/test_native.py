"""The `native` dialect, field by field: what users do with their own sessions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from tests.contracts.dialect import CHROME_ON_WINDOWS, JSON, NO_IDS, SAFARI_ON_IPHONE, DialectContract, detail_and_code
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, eventually, masked, someone, token

_BASE = "/_gatekeeper/v1"
_SESSIONS = f"{_BASE}/sessions"
_NOT_FOUND = ("session_not_found", "Session not found or already terminated")
_UNKNOWN = error_body("session_not_found")
_NOT_SERVED = b'{"detail":"Not found","code":"not_found"}'
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_FIELDS = [
    *("id", "user", "user_name", "is_current", "is_active", "client", "device", "ip_address", "location"),
    *("login_method", "created_at", "last_activity", "idle_expires_at", "expires_at"),
    *("ended_at", "end_reason", "ended_by"),
]
_LAPTOP, _PHONE = [("User-Agent", CHROME_ON_WINDOWS)], [("User-Agent", SAFARI_ON_IPHONE)]


def one(session: int | str, rest: str = "") -> str:
    return f"{_SESSIONS}/{session}{rest}"


def sent(world: World, method: str, path: str, bearing: str, body: Any = None) -> ClientResponse:
    if body is None:
        return world.fetch(path, bearing, method=method)
    return world.fetch(path, bearing, method=method, headers=[JSON], body=json.dumps(body).encode())


def read(answer: ClientResponse) -> Any:
    assert answer.status == 200, answer
    return json.loads(answer.body)


def listed(world: World, bearing: str, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(world.fetch(_SESSIONS + query, bearing))["sessions"]
    return found


def opened(world: World, bearing: str) -> int:
    return int(world.passed("/", bearing).get_all("x-session-id")[0])


class TestNative(DialectContract):
    name: ClassVar = "native"
    no_token: ClassVar = ("token_missing", "Authentication credentials were not provided")

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        return [
            ("GET", f"{_BASE}/me"),
            ("GET", _SESSIONS),
            *((method, one(session)) for method in ("GET", "PATCH", "DELETE")),
            ("POST", one(session, "/report")),
            ("POST", one("end-others")),
            ("POST", one("end-all")),
        ]

    def error(self, body: bytes) -> tuple[str, str]:
        return detail_and_code(body)

    # Below /_gatekeeper/ nothing is the backend's.

    def test_methods_that_it_does_not_name_are_the_backends(self, world: World) -> None:
        answer = world.refused(_SESSIONS, token(someone()), method="PUT")
        assert_own_response(answer, 404, _NOT_SERVED)

    def test_its_paths_are_the_backends_where_it_is_switched_off(self, without: World) -> None:
        for method, path in self.operations():
            answer = without.refused(path, token(someone()), method=method)
            assert_own_response(answer, 404, _NOT_SERVED)


def test_a_session_has_its_fields(world: World) -> None:
    user = someone()
    answer = world.fetch(_SESSIONS, token(user), headers=_LAPTOP)
    assert_own_response(answer, 200, answer.body)
    assert (
        masked(answer.body)
        == (
            b'{"sessions":[{"id":<id>,"user":"%b","user_name":null,"is_current":true,"is_active":true,"client":null,'
            b'"device":{"id":null,"name":"Chrome on Windows","given_name":null,"browser":"Chrome","os":"Windows",'
            b'"form":"Desktop","type":"web","is_new":false},"ip_address":"127.0.0.1","location":null,'
            b'"login_method":"token","created_at":"<microseconds>","last_activity":"<microseconds>",'
            b'"idle_expires_at":"<microseconds>","expires_at":"<microseconds>","ended_at":null,"end_reason":null,'
            b'"ended_by":null}],"device_limit":3,"next_to_go":null,"server_time":"<microseconds>"}'
        )
        % user.encode()
    )
    (session,) = json.loads(answer.body)["sessions"]
    idle, active = (datetime.fromisoformat(session[name]) for name in ("idle_expires_at", "last_activity"))
    assert (idle - active).total_seconds() == 1800
    assert list(session) == _FIELDS


def test_me_tells_the_caller_and_the_rules(world: World) -> None:
    user = someone()
    bearing = token(user, roles=["b", "admin"])
    session = opened(world, bearing)
    me = read(world.fetch(f"{_BASE}/me", bearing))
    assert list(me) == ["user", "user_name", "roles", "is_admin", "session", "policy", "server_time"]
    assert (me["user"], me["user_name"], me["roles"], me["is_admin"]) == (user, None, ["b", "admin"], True)
    assert (me["session"]["id"], me["session"]["is_current"]) == (session, True)
    assert json.dumps(me["policy"]) == (
        '{"device_limit": 3, "device_limit_policy": "evict_idle", "idle_seconds": 1800, "session_seconds": 86400}'
    )
    assert abs((datetime.now(UTC) - datetime.fromisoformat(me["server_time"])).total_seconds()) < 60


def test_the_current_session_is_first_then_the_newest_activity(world: World) -> None:
    user = someone()
    first, second, third = (token(user) for _ in range(3))
    ids = [opened(world, bearing) for bearing in (first, second, third)]
    rows = listed(world, first)
    assert [row["id"] for row in rows] == [ids[0], ids[2], ids[1]]
    assert [row["is_current"] for row in rows] == [True, False, False]


def test_ended_sessions_come_last_with_their_reason_newest_end_first(world: World) -> None:
    user = someone()
    mine, *others = (token(user) for _ in range(3))
    current, first, second = (opened(world, bearing) for bearing in (mine, *others))
    read(sent(world, "DELETE", one(first), mine))
    world.fetch("/sessions/logout", others[1], method="DELETE")
    assert [row["id"] for row in listed(world, mine)] == [current]
    live, *ended = listed(world, mine, "?include_ended=true")
    assert (live["id"], live["ended_by"]) == (current, None)
    # The dialects' lists have what a DELETE ended no more.
    assert [
        (row["id"], row["is_active"], row["end_reason"], row["ended_by"], row["idle_expires_at"]) for row in ended
    ] == [
        (second, False, "logged_out", "user", None),
        (first, False, "revoked_by_user", "user", None),
    ]
    assert all(_TIME.fullmatch(row["ended_at"]) for row in ended)
    assert len(listed(world, mine, "?include_ended=false&other=1")) == 1
    bad = world.fetch(_SESSIONS + "?include_ended=1", mine)
    assert (bad.status, detail_and_code(bad.body)) == (
        400,
        ("bad_request", "include_ended must be given once, as true or false"),
    )


def test_who_ended_it_is_told(world: World, store: Store) -> None:
    user = someone()
    mine = token(user)
    opened(world, mine)
    by_admin, evicted = token(user), token(user)
    ids = [opened(world, bearing) for bearing in (by_admin, evicted)]
    boss = token(someone(), roles=["admin"])
    assert world.fetch(f"/sessions/user/{user}/{ids[0]}", boss, method="DELETE").status == 200
    world.passed("/", mine)
    for _ in range(2):
        opened(world, token(user))
    found = {row["id"]: (row["end_reason"], row["ended_by"]) for row in listed(world, mine, "?include_ended=true")}
    assert found[ids[0]] == ("revoked_by_admin", "admin")
    assert found[ids[1]] == ("evicted", "system")


def test_one_session_is_found_live_and_ended(world: World) -> None:
    user = someone()
    mine, other = token(user), token(user)
    current, session = opened(world, mine), opened(world, other)
    assert read(world.fetch(one(session), mine))["is_current"] is False
    for name in ("current", current):
        row = read(world.fetch(one(name), mine))
        assert (row["id"], row["is_current"], list(row)) == (current, True, _FIELDS)
    ended = read(sent(world, "DELETE", one(session), mine))
    assert (ended["id"], ended["is_active"], ended["end_reason"]) == (session, False, "revoked_by_user")
    found = read(world.fetch(one(session), mine))
    assert found == ended
    assert b'"revoked_by_user"' in world.refused("/", other).body


def test_the_current_one_may_be_ended(world: World) -> None:
    bearing = token(someone())
    session = opened(world, bearing)
    ended = read(sent(world, "DELETE", one("current"), bearing))
    assert (ended["id"], ended["is_current"], ended["ended_by"]) == (session, True, "user")
    assert world.refused(_SESSIONS, bearing).status == 401


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE", "POST"])
def test_not_yours_not_there_and_ended_are_one_answer(world: World, method: str) -> None:
    mine, theirs = token(someone()), token(someone())
    foreign = opened(world, theirs)
    rest, body = ("/report", None) if method == "POST" else ("", {"name": "x"} if method == "PATCH" else None)
    for session in (str(foreign), *NO_IDS):
        answer = sent(world, method, one(session, rest), mine, body)
        if answer.status != 400:  # what is no path, such as %FF in places
            assert_own_response(answer, 404, _UNKNOWN)
    assert read(world.fetch(one("current"), theirs))["device"]["given_name"] is None
    if method != "GET":
        user = someone()
        mine, other = token(user), token(user)
        opened(world, mine)
        ended_id = opened(world, other)
        assert world.fetch(f"/api/sessions/{ended_id}/deactivate", mine, method="PATCH").status == 200
        before = read(world.fetch(one(ended_id), mine))
        assert_own_response(sent(world, method, one(ended_id, rest), mine, body), 404, _UNKNOWN)
        assert read(world.fetch(one(ended_id), mine)) == before
        # It is still among the inactive ones of a dialect.
        assert str(ended_id) in world.fetch("/api/sessions?include_inactive=true", mine).body.decode()


def test_a_session_is_given_a_name(world: World) -> None:
    user = someone()
    mine, other = token(user), token(user)
    opened(world, mine)
    session = opened(world, other)
    for given, shown in (
        ("Work laptop", "Work laptop"),
        ("  e\u0301te\u0301 ", "été"),
        ("x" * 40, "x" * 40),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        (None, None),
    ):
        row = read(sent(world, "PATCH", one(session), mine, {"name": given}))
        assert (row["id"], row["device"]["given_name"], row["is_active"]) == (session, shown, True)
        rows = {each["id"]: each["device"]["given_name"] for each in listed(world, mine)}
        assert rows[session] == shown
    read(sent(world, "PATCH", one("current"), other, {"name": "Kept"}))
    ended = read(sent(world, "DELETE", one(session), mine))
    assert ended["device"]["given_name"] == "Kept"


def test_what_is_no_name_changes_nothing(world: World) -> None:
    bearing = token(someone())
    opened(world, bearing)
    read(sent(world, "PATCH", one("current"), bearing, {"name": "Before"}))
    no_name = "name must be a text without control characters, or null (1 to 40 characters)"
    hidden = ("\0", "\n", "\x7f", "\u202e", "\u2066", "\u200f", "\u2028", "\ufeff")
    texts = [7, True, ["x"], {}, "", " \t ", "x" * 41, *(f"a{each}b" for each in hidden)]
    for body, detail in (
        ({}, "name must be given once"),
        *(({"name": text}, no_name) for text in texts),
        ({"name": "x", "nmae": 1, "z": 2}, "The body has an unknown member (nmae, z; accepted: name, language)"),
    ):
        answer = sent(world, "PATCH", one("current"), bearing, body)
        assert (answer.status, detail_and_code(answer.body)) == (400, ("bad_request", detail)), body
    assert read(world.fetch(one("current"), bearing))["device"]["given_name"] == "Before"


def test_unknown_members_are_named_by_every_operation(world: World) -> None:
    user = someone()
    mine, other = token(user), token(user)
    opened(world, mine)
    session = opened(world, other)
    for method, path in (
        ("DELETE", one(session)),
        ("POST", one(session, "/report")),
        ("POST", one("end-others")),
        ("POST", one("end-all")),
    ):
        answer = sent(world, method, path, mine, {"language": "fr", "all": True})
        assert answer.status == 400
        assert detail_and_code(answer.body)[1] == "Le corps contient un membre inconnu (all; accepted: language)"
    assert world.store.live(user) == 2


def test_all_others_and_all_end_and_are_counted(world: World) -> None:
    user = someone()
    bearers = [token(user) for _ in range(3)]
    ids = [opened(world, bearing) for bearing in bearers]
    assert world.fetch(one("end-others"), bearers[0], method="POST").body == b'{"ended":2}'
    assert [row["id"] for row in listed(world, bearers[0])] == [ids[0]]
    assert world.fetch(one("end-others"), bearers[0], method="POST").body == b'{"ended":0}'
    assert world.fetch(one("end-all"), bearers[0], method="POST").body == b'{"ended":1}'
    assert {world.refused("/", bearing).status for bearing in bearers} == {401}


def test_what_a_user_does_not_know_is_reported(world: World, store: Store) -> None:
    user = someone()
    mine, other = token(user), token(user)
    current = opened(world, mine)
    session = int(world.passed("/", other, headers=_PHONE).get_all("x-session-id")[0])
    for name in ("current", current):
        answer = sent(world, "POST", one(name, "/report"), mine)
        assert (answer.status, detail_and_code(answer.body)[1]) == (400, "The current session cannot be reported")
    told = read(sent(world, "POST", one(session, "/report"), mine))
    assert list(told) == ["session", "change_password_url"]
    assert (told["session"]["id"], told["session"]["end_reason"], told["session"]["ended_by"]) == (
        session,
        "reported",
        "user",
    )
    assert told["change_password_url"] is None
    assert b'"reported"' in world.refused("/", other).body
    (row,) = (row for row in listed(world, mine, "?include_ended=true") if row["id"] == session)
    assert row["end_reason"] == "reported"


def test_a_report_stands_in_the_audit_log_and_names_where_to_go_on(other_rules: World) -> None:
    user = someone()
    mine, other = token(user), token(user)
    opened(other_rules, mine)
    session = int(other_rules.passed("/", other, headers=_PHONE).get_all("x-session-id")[0])
    reported = read(sent(other_rules, "POST", one(session, "/report"), mine))
    assert reported["change_password_url"] == "https://id.example/password?x=1"

    def events() -> list[dict[str, str]]:
        entries: Any = other_rules.store.client.xrange("gk:audit")
        found = [fields for _, fields in entries]
        return [each for each in found if each.get("session_id") == str(session) and each["user_id"] == user]

    eventually(lambda: len(events()) == 3)
    assert [(event["event"], event["reason"], event["actor"]) for event in events()] == [
        ("session_opened", "token", "user"),
        ("session_ended", "reported", "user"),
        ("session_reported", "Safari on iOS, 127.0.0.1", "user"),
    ]


def test_the_next_to_go_is_the_one_that_goes(world: World) -> None:
    user = someone()
    bearers = [token(user) for _ in range(3)]
    for bearing in bearers[:2]:
        opened(world, bearing)
    assert read(world.fetch(_SESSIONS, bearers[0]))["next_to_go"] is None
    opened(world, bearers[2])
    told = read(world.fetch(_SESSIONS, bearers[0]))["next_to_go"]
    opened(world, token(user))
    (gone,) = (row for row in listed(world, bearers[0], "?include_ended=true") if not row["is_active"])
    assert (gone["id"], gone["end_reason"]) == (told, "evicted")


@pytest.fixture(scope="module")
def other_rules(store: Store) -> Iterator[World]:
    with mounted(
        store,
        device_limit="2",
        device_limit_policy="reject",
        idle_timeout="off",
        user_name_claim="profile.name",
        change_password_url="https://id.example/password?x=1",
    ) as made:
        yield made


def test_other_rules_are_told(other_rules: World) -> None:
    user = someone()
    bearing = token(user, profile={"name": "Zoë\x07"}, azp="shop", client_id="other")
    told = read(other_rules.fetch(_SESSIONS, bearing))
    (row,) = told["sessions"]
    assert (row["user_name"], row["client"], row["idle_expires_at"]) == ("Zoë", "shop", None)
    assert (told["device_limit"], told["next_to_go"]) == (2, None)
    me = read(other_rules.fetch(f"{_BASE}/me", bearing))
    assert (me["user_name"], me["policy"]["idle_seconds"], me["policy"]["device_limit_policy"]) == (
        "Zoë",
        None,
        "reject",
    )
    other = token(someone(), client_id="cli", profile={"name": 7})
    (row,) = listed(other_rules, other)
    assert (row["client"], row["user_name"]) == ("cli", None)
