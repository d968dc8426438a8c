"""The rules that every dialect keeps, whatever its words are. A dialect's suite inherits `DialectContract`, or
`SessionsContract` where users list and end their own sessions; it says where its operations are and how its answers
read, and adds what only it has."""

from __future__ import annotations

import gzip
import json
import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any, ClassVar

import pytest

from tests.contracts.responses import RETRY_SOON, assert_says_what_is_accepted
from tests.servers import ClientResponse
from tests.system.sidecar import World, bearer, masked, someone, token

CHROME_ON_WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
)
SAFARI_ON_IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.2 Mobile/15E148 Safari/604.1"
)
# What is no session of anybody: S13.
NO_IDS = ["1", "9007199254740991", "9007199254740992", "0", "-1", "01", "abc", "*", "%31%32", "null", "1.0", "1%20"]
NO_IDS += [
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "9" * 4000,
    "session_",
    "{id}",
    "%D9%A3",
    "+1",
    "1e3",
    "%FF",
    "a%2Fb",
]
# Where the own sessions of a caller are listed, and the error shape; of those that are told apart by them.
LISTS = {
    "django": "/api/v1/auth/users/me/sessions/",
    "express": "/api/sessions",
    "mockstream": "/sessions/me",
    "users_me": "/api/users/me/sessions",
}
PATHS = {**LISTS, "fastapi": "/debug/session-info"}
DETAIL_AND_CODE = frozenset({"fastapi", "mockstream", "native", "users_me"})
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
JSON = ("Content-Type", "application/json")


def toggled(path: str) -> str:
    """The same path with the trailing slash if it is without, and the other way round."""
    bare, mark, query = path.partition("?")
    return (bare.removesuffix("/") if bare.endswith("/") else bare + "/") + mark + query


def admin(user: str | None = None) -> str:
    return token(user or someone(), roles=["user", "admin"])


def detail_and_code(body: bytes) -> tuple[str, str]:
    """Code and text of an error in the shape that three dialects share; fails for another."""
    found = json.loads(body)
    # An admin panel guards with array checks: an error is never one (D-11).
    assert list(found) in (["detail", "code"], ["detail", "code", "reason"])
    return found["code"], found["detail"]


class DialectContract:
    """`operations` are all that the dialect names, with an id in them where one belongs."""

    name: ClassVar[str]
    no_token: ClassVar[tuple[str, str]]

    def error(self, body: bytes) -> tuple[str, str]:
        """Code and text of an error; fails for a body of another shape."""
        raise NotImplementedError

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        raise NotImplementedError

    def names(self, method: str, path: str) -> bool:
        return (method, path) in self.operations()

    def fails(self, answer: ClientResponse, status: int, code: str) -> None:
        """An error of this dialect: its status, its code, one `X-Request-Id`."""
        assert (answer.status, self.error(answer.body)[0].lower()) == (status, code)
        assert len(answer.get_all("x-request-id")) == 1

    def test_every_operation_wants_a_token(self, world: World) -> None:  # B-08
        for method, path in self.operations():
            for each in (path, toggled(path)):
                answer = world.refused(each, method=method)
                assert (answer.status, self.error(answer.body)) == (401, self.no_token)
                assert answer.get_all("www-authenticate") == ["Bearer"]

    def test_a_dead_token_gets_this_dialects_error(self, world: World) -> None:
        bearing = token(someone())
        world.fetch("/sessions/logout", bearing, method="DELETE")
        for method, path in self.operations():
            # A logout may be repeated (D-03).
            if path != "/sessions/logout":
                answer = world.refused(path, bearing, method=method)
                assert answer.status == 401
                assert self.error(answer.body)
                assert answer.get_all("www-authenticate")[0].startswith('Bearer error="invalid_token"')

    def test_methods_that_it_does_not_name_are_the_backends(self, world: World) -> None:
        bearing = admin()
        for path in {path for _, path in self.operations()}:
            for method in METHODS:
                if self.names(method, path):
                    continue
                request = world.passed(path, bearing, method=method)
                assert (request.method, request.target) == (method, path)
                assert world.refused(path, method=method).status == 401

    def test_its_paths_are_the_backends_where_it_is_switched_off(self, without: World) -> None:
        bearing = admin()
        for method, path in self.operations():
            request = without.passed(path, bearing, method=method)
            assert (request.method, request.target) == (method, path)
            assert without.refused(path, method=method).status == 401

    def test_another_spelling_of_its_paths_is_refused(self, world: World) -> None:
        bearing = admin()
        for method, path in self.operations():
            for spelling in (f"/{path}", path.replace("e", "%65", 1), f"/x/..{path}", path.upper()):
                answer = world.refused(spelling, bearing, method=method)
                assert (answer.status, json.loads(answer.body)["code"]) == (400, "bad_request")

    def test_the_error_shapes_of_the_others_are_refused(self, world: World) -> None:
        for name, path in PATHS.items():
            if name != self.name and not {name, self.name} <= DETAIL_AND_CODE:
                with pytest.raises((AssertionError, TypeError, KeyError)):
                    self.error(world.refused(path).body)

    def test_a_body_that_is_no_json_object_changes_nothing(self, world: World) -> None:
        user = someone()
        bearing = admin(user)
        world.passed("/", bearing)
        zipped = gzip.compress(b"{}")
        for method, path in self.operations():
            if method == "GET":
                continue
            for body, headers, status, code in [
                (b"{}", [("Content-Type", "text/plain")], 415, "unsupported_media_type"),  # S20
                (
                    b"language=fr",
                    [("Content-Type", "application/x-www-form-urlencoded")],
                    415,
                    "unsupported_media_type",
                ),
                (b"{}", [], 415, "unsupported_media_type"),
                (zipped, [JSON, ("Content-Encoding", "gzip")], 415, "unsupported_media_type"),
                (b"{", [JSON], 400, "bad_request"),
                (b"[]", [JSON], 400, "bad_request"),
                (b"[" * 60_000, [JSON], 400, "bad_request"),
                (b"\xff", [JSON], 400, "bad_request"),
                (b" " * 65_537, [JSON], 413, "body_too_large"),
            ]:
                answer = world.refused(path, bearing, method=method, headers=headers, body=body)
                self.fails(answer, status, code)
                if status == 415:
                    assert_says_what_is_accepted(answer, headers, "application/json")
        assert world.store.live(user) == 1

    def test_a_message_is_in_the_language_that_is_asked_for_and_a_code_is_not(self, world: World) -> None:  # C-39
        for method, path in self.operations():
            english = self.error(world.refused(path, method=method).body)
            french = self.error(
                world.refused(path, method=method, headers=[("Accept-Language", "fr-CA, en;q=.1")]).body
            )
            assert french[0] == english[0]
            assert french[1] != english[1]
            # U14: what is no language is none.
            for odd in ("../../etc/passwd", "{0.__class__}", "fr" * 5_000, "xx"):
                answer = world.refused(path, method=method, headers=[("Accept-Language", odd)])
                assert self.error(answer.body) == english

    def test_a_store_that_is_away_is_503_in_this_dialects_shape(self, without_store: World) -> None:
        for method, path in self.operations():
            answer = without_store.refused(path, admin(), method=method)
            self.fails(answer, 503, "store_unavailable")
            (seconds,) = answer.get_all("retry-after")
            assert seconds in RETRY_SOON


class SessionsContract(DialectContract):
    """Users list and end their own sessions: `list_path` lists them, DELETE on `all_path` ends them, on `one_path` one
    of them.

    `decimals` are those of its times, `session_keys` the fields of a session in their order, `all_spares` whether the
    end of all leaves the session that asks for it.
    """

    list_path: ClassVar[str]
    all_path: ClassVar[str]
    one_path: ClassVar[str]
    decimals: ClassVar[int]
    session_keys: ClassVar[list[str]]
    times: ClassVar[list[str]] = ["created_at"]
    all_spares: ClassVar[bool] = False
    not_found: ClassVar[tuple[str, str]]

    # How its answers read

    def sessions(self, answer: ClientResponse) -> list[dict[str, Any]]:
        """The rows of a list; fails for a list of another shape."""
        raise NotImplementedError

    def id_of(self, session: dict[str, Any]) -> int:
        assert type(session["id"]) is int
        return int(session["id"])

    def listed(self, world: World, bearing: str, query: str = "") -> list[dict[str, Any]]:
        answer = world.fetch(self.list_path + query, bearing)
        assert answer.status == 200, answer
        return self.sessions(answer)

    def ids(self, world: World, bearing: str, query: str = "") -> list[int]:
        return [self.id_of(session) for session in self.listed(world, bearing, query)]

    def path_of(self, session: int | str) -> str:
        return self.one_path.replace("{id}", str(session))

    def end(self, world: World, bearing: str, session: int | str) -> ClientResponse:
        return world.fetch(self.path_of(session), bearing, method="DELETE")

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        return [("GET", self.list_path), ("DELETE", self.all_path), ("DELETE", self.path_of(session))]

    def on_one(self, session: int | str) -> list[tuple[str, str]]:
        """The operations that a user has on one session."""
        everything, none = self.operations(session), self.operations("")
        return [each for each in everything if each not in none and "/user/" not in each[1]]

    # The rules

    def test_a_list_shows_exactly_the_callers_live_sessions_newest_activity_first(self, world: World) -> None:
        # B-01, E-01
        user, other = someone(), someone()
        first, second, third = (token(user) for _ in range(3))
        world.passed("/", token(other))
        mine = [int(world.passed("/", bearing).get_all("x-session-id")[0]) for bearing in (first, second, third)]
        world.passed("/", first)
        # The listing itself is activity of the third.
        assert self.ids(world, third) == [mine[2], mine[0], mine[1]]

    def test_a_session_has_its_fields_in_their_order_and_precision(self, world: World) -> None:
        # B-05, B-06, D-02, E-04
        (session,) = self.listed(world, token(someone()))
        assert list(session) == self.session_keys
        fraction = rf"\.\d{{{self.decimals}}}" if self.decimals else ""
        for name in self.times:
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d{fraction}Z", session[name])
            moment = datetime.fromisoformat(session[name])
            assert name == "expires_at" or abs((datetime.now(UTC) - moment).total_seconds()) < 30
        assert session["is_active"] is True
        assert session["ip_address"] == "127.0.0.1"

    def test_exactly_the_session_that_asks_is_marked_as_current(self, world: World) -> None:
        user = someone()
        laptop, phone = token(user), token(user)
        world.passed("/", phone)
        rows = self.listed(world, laptop)
        # B and D have no such field.
        marks = [row.get("is_current") for row in rows]
        assert marks == ([True, False] if "is_current" in self.session_keys else [None, None])

    def test_a_list_holds_no_credential_and_nothing_of_others(self, world: World) -> None:  # S26
        user, other = someone(), someone()
        bearing, jti = token(user), uuid.uuid4().hex
        world.passed("/", token(user, jti=jti))
        world.passed("/", token(other))
        text = world.fetch(self.list_path, bearing).body.decode()
        assert jti not in text
        assert other not in text
        assert not any(part in text for part in bearing.split("."))

    def test_an_ended_session_leaves_the_list_and_is_refused_at_once(self, world: World) -> None:
        # C-13, E-02, E-07
        user = someone()
        laptop, phone = token(user), token(user)
        world.passed("/", phone)
        (_, phone_session) = self.ids(world, laptop)
        assert self.end(world, laptop, phone_session).status == 200
        assert len(self.ids(world, laptop)) == 1
        assert b'"revoked_by_user"' in world.refused("/", phone).body
        assert self.error(self.end(world, laptop, phone_session).body) == self.not_found

    def test_the_answer_to_the_end_of_the_own_session_is_delivered(self, world: World) -> None:
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        assert self.end(world, bearing, mine).status == 200
        answer = world.refused(self.list_path, bearing)
        assert answer.status == 401

    def test_what_is_not_the_callers_is_not_there(self, world: World) -> None:
        # B-11, B-15, S13: user B with every id of user A, by every method that the dialect names
        victim = someone()
        a, b = [token(victim) for _ in range(3)], token(someone())
        for bearing in a:
            world.passed("/", bearing)
        theirs, own = self.ids(world, a[0]), self.ids(world, b)
        assert len(theirs) == 3
        for session in theirs:
            for (method, path), (_, unknown) in zip(self.on_one(session), self.on_one(4), strict=True):
                given = [("X-Request-Id", str(uuid.uuid4()))]
                answer = world.refused(path, b, method=method, headers=given)
                assert answer.status == 404
                # Not there and not yours are one answer.
                absent = world.refused(unknown, b, method=method, headers=given)
                assert (absent.status, masked(absent.body)) == (404, masked(answer.body))
                assert self.error(answer.body)[0].lower() == "session_not_found"
            assert self.error(self.end(world, b, session).body) == self.not_found
        for method, path in [("GET", self.list_path), ("DELETE", self.all_path)]:
            assert world.fetch(path, b, method=method).status == 200
        assert self.ids(world, a[0]) == theirs
        assert own[0] not in theirs

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_no_method_on_the_id_of_another_user_touches_their_session(self, world: World, method: str) -> None:
        mine, theirs = token(someone()), token(someone())
        (foreign,) = self.ids(world, theirs)
        for path in {path for _, path in self.on_one(foreign)}:
            for each in (path, toggled(path)):
                answer = world.fetch(each, mine, method=method)
                # What the dialect does not name is the backend's, as the caller and nobody else.
                assert answer.status == (404 if (method, path) in self.on_one(foreign) else 200)
        assert self.ids(world, theirs) == [foreign]

    def test_a_foreign_id_costs_what_an_unknown_one_costs(self, world: World) -> None:  # B-11, S13
        mine, theirs = token(someone()), token(someone())
        (foreign,) = self.ids(world, theirs)
        world.passed("/", mine)

        def scripts(session: int) -> int:
            before = world.store.scripts_run
            assert self.end(world, mine, session).status == 404
            return world.store.scripts_run - before

        assert scripts(foreign) == scripts(4)

    @pytest.mark.slow
    def test_a_foreign_id_takes_as_long_as_an_unknown_one(self, world: World) -> None:  # B-11, S13
        theirs = token(someone())
        (foreign,) = self.ids(world, theirs)

        def seconds(bearing: str, session: int) -> float:
            began = time.perf_counter()
            assert self.end(world, bearing, session).status == 404
            return time.perf_counter() - began

        def ratio() -> float:
            # In turns, so that what else this machine does meets both alike; by many callers, as each may ask only so
            # often.
            callers = [token(someone()) for _ in range(10)] * 20
            pairs = [(seconds(each, foreign), seconds(each, foreign ^ 1)) for each in callers]
            return median(first for first, _ in pairs[10:]) / median(second for _, second in pairs[10:])

        # A foreign id that is looked up and then refused would be another round trip, which doubles it.
        assert any(0.8 < ratio() < 1.25 for _ in range(3))

    @pytest.mark.parametrize("no_id", NO_IDS)
    def test_an_id_that_is_no_id_is_the_same_not_found(self, world: World, no_id: str) -> None:  # A-04, S13
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        answer = self.end(world, bearing, no_id)
        assert (answer.status, self.error(answer.body)) == (404, self.not_found)
        assert self.ids(world, bearing) == [mine]

    def test_a_trailing_slash_changes_nothing_and_is_no_redirect(self, world: World) -> None:  # A-04, E-01
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        assert [self.id_of(row) for row in self.sessions(world.fetch(toggled(self.list_path), bearing))] == [mine]
        assert world.fetch(toggled(self.path_of(mine)), bearing, method="DELETE").status == 200
        user = someone()
        assert world.fetch(toggled(self.all_path), token(user), method="DELETE").status == 200
        assert world.store.live(user) == int(self.all_spares)

    def test_head_answers_as_get_without_the_body(self, world: World) -> None:
        bearing = token(someone())
        world.passed("/", bearing)
        for path in (self.list_path, toggled(self.list_path)):
            got = world.fetch(path, bearing, headers=[("X-Request-Id", "x")])
            head = world.fetch(path, bearing, method="HEAD", headers=[("X-Request-Id", "x")])
            assert (head.status, head.body) == (200, b"")
            assert _undated(head) == _undated(got)

    def test_all_ends_every_session_of_the_caller(self, world: World) -> None:  # B-03, E-03
        user = someone()
        laptop, phone, other = token(user), token(user), token(someone())
        for bearing in (phone, laptop, other):
            world.passed("/", bearing)
        assert world.fetch(self.all_path, laptop, method="DELETE").status == 200
        assert world.refused("/", phone).status == 401
        assert (world.fetch("/", laptop).status == 200) is self.all_spares
        assert world.store.live(user) == int(self.all_spares)
        world.passed("/", other)

    @pytest.mark.parametrize(("value", "spared"), [("true", True), ("false", False)])
    def test_the_current_session_can_be_spared(self, world: World, value: str, *, spared: bool) -> None:
        user = someone()
        laptop, phone = token(user), token(user)
        for bearing in (phone, laptop):
            world.passed("/", bearing)
        answer = world.fetch(f"{self.all_path}?exclude_current={value}", laptop, method="DELETE")
        assert answer.status == 200
        assert world.refused("/", phone).status == 401
        assert (world.fetch("/", laptop).status == 200) is spared

    @pytest.mark.parametrize(
        "query", ["=", "=TRUE", "=1", "=yes", "=true&exclude_current=true", "=true&exclude_current=false", "=%00", ""]
    )
    def test_another_value_of_exclude_current_ends_nothing(self, world: World, query: str) -> None:
        bearing = token(someone())
        world.passed("/", bearing)
        answer = world.fetch(f"{self.all_path}?exclude_current{query}", bearing, method="DELETE")
        self.fails(answer, 400, "bad_request")
        assert len(self.ids(world, bearing)) == 1

    def test_a_query_that_means_nothing_here_is_no_matter(self, world: World) -> None:
        bearing = token(someone())
        for query in ("?_=1", "?exclude_current=x", "?a=%ff&b"):
            assert len(self.ids(world, bearing, query)) == 1

    def test_inactive_sessions_are_listed_when_asked_for(self, world: World) -> None:
        user = someone()
        laptop, logged_out, deactivated, revoked = (token(user, roles=[]) for _ in range(4))
        (first,) = self.ids(world, logged_out)
        world.fetch("/sessions/logout", logged_out, method="DELETE")
        second = int(world.passed("/", deactivated).get_all("x-session-id")[0])
        world.fetch(f"/api/sessions/{second}/deactivate", deactivated, method="PATCH")
        third = int(world.passed("/", revoked).get_all("x-session-id")[0])
        self.end(world, revoked, third)
        (mine,) = self.ids(world, laptop)
        rows = self.listed(world, laptop, "?include_inactive=true")
        # What was deleted is gone from every list at once.
        assert {self.id_of(row): row["is_active"] for row in rows} == {mine: True, first: False, second: False}
        assert self.ids(world, laptop, "?include_inactive=false") == [mine]
        self.fails(world.fetch(f"{self.list_path}?include_inactive=maybe", laptop), 400, "bad_request")

    def test_a_deactivated_session_can_be_deleted_and_no_other_ended_one(self, world: World) -> None:
        user = someone()
        laptop, deactivated, logged_out = token(user), token(user), token(user)
        gone = int(world.passed("/", logged_out).get_all("x-session-id")[0])
        world.fetch("/sessions/logout", logged_out, method="DELETE")
        off = int(world.passed("/", deactivated).get_all("x-session-id")[0])
        assert world.fetch(f"/api/sessions/{off}/deactivate", laptop, method="PATCH").status == 200
        assert self.end(world, laptop, gone).status == 404
        assert self.end(world, laptop, off).status == 200
        assert self.end(world, laptop, off).status == 404
        # Its end reason stays.
        assert b"deactivated" in world.refused("/", deactivated).body

    def test_a_cookie_may_list(self, world: World) -> None:
        bearing = token(someone())
        answer = world.fetch(self.list_path, headers=[("Cookie", f"access_token={bearing}")])
        assert len(self.sessions(answer)) == 1
        # Two credentials of one user are one caller.
        both = [bearer(bearing), ("Cookie", f"access_token={bearing}")]
        assert len(self.sessions(world.fetch(self.list_path, headers=both))) == 1

    def test_a_cookie_of_another_site_ends_nothing(self, world: World) -> None:  # S21
        user = someone()
        bearing = token(user)
        (mine,) = self.ids(world, bearing)
        cookie = ("Cookie", f"access_token={bearing}")
        for method, path in [("DELETE", self.all_path), *self.on_one(mine)]:
            for headers in ([], [("Origin", "https://evil.example")], [("Origin", "null")]):
                answer = world.refused(path, method=method, headers=[cookie, *headers])
                self.fails(answer, 403, "origin_not_allowed")
        assert world.store.live(user) == 1

    def test_a_round_trip_for_the_verdict_and_one_for_the_operation(self, world: World) -> None:
        bearing = token(someone())
        world.passed("/", bearing)

        def scripts_run() -> int:
            before = world.store.scripts_run
            self.ids(world, bearing)
            return world.store.scripts_run - before

        def round_trips() -> int:
            before = _reads(world)
            self.ids(world, bearing)
            return _reads(world) - before - 1

        # The verdict and the count of the caller's calls leave together; then the list.
        assert scripts_run() == 3
        # The gate looks after the store by itself now and then, which adds to it.
        assert _least(round_trips) == 2

    def test_the_bodies_are_compact_json_in_utf8(self, world: World) -> None:
        answer = world.fetch(self.list_path, token(someone()), headers=[("User-Agent", "Zoë/1")])
        assert answer.body == json.dumps(json.loads(answer.body), ensure_ascii=False, separators=(",", ":")).encode()
        assert answer.get_all("content-type") == ["application/json; charset=utf-8"]

    def test_a_hostile_user_agent_is_text_in_json(self, world: World) -> None:  # U01
        for agent in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "x" * 60_000):
            answer = world.fetch(self.list_path, token(someone()), headers=[("User-Agent", agent)])
            assert len(self.sessions(answer)) == 1
            assert len(answer.body) < 5_000
            assert answer.get_all("x-content-type-options") == ["nosniff"]

    def test_the_lists_of_the_others_are_refused(self, world: World) -> None:
        bearing = token(someone())
        for name, path in LISTS.items():
            if name != self.name:
                with pytest.raises((AssertionError, TypeError, KeyError)):
                    self.sessions(world.fetch(path, bearing))


def _undated(answer: ClientResponse) -> list[tuple[str, str]]:
    return [pair for pair in answer.headers if pair[0].lower() != "date"]


def _reads(world: World) -> int:
    """How often the server behind has read from its connections: once for a batch that comes in one piece."""
    stats: Any = world.store.client.info("stats")
    return int(stats["total_reads_processed"])


def _least(measure: Callable[[], int]) -> int:
    return min(measure() for _ in range(5))
