"""The rules that every dialect keeps, whatever its words are. A dialect's suite inherits `DialectContract`, says where
its operations are and how its answers read, and adds what only it has."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from tests.servers import Answer
from tests.system.sidecar import World, bearer, someone, token

CHROME_ON_WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
)
SAFARI_ON_IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.2 Mobile/15E148 Safari/604.1"
)
# What is no session of anybody: S13.
NO_IDS = ["1", "9007199254740991", "9007199254740992", "0", "-1", "01", "abc", "*", "%31%32", "null", "1.0", "1%20"]
NO_IDS += ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", "9" * 4000, "session_", "{id}", "%D9%A3", "+1", "1e3"]


class DialectContract:
    """`list_path` lists the caller's sessions, DELETE on `all_path` ends them, on `one_path` one of them.

    `decimals` are those of its times, `session_keys` the fields of a session in their order.
    """

    list_path: ClassVar[str]
    all_path: ClassVar[str]
    one_path: ClassVar[str]
    decimals: ClassVar[int]
    session_keys: ClassVar[list[str]]
    times: ClassVar[list[str]] = ["created_at"]

    # How its answers read

    def sessions(self, answer: Answer) -> list[dict[str, Any]]:
        raise NotImplementedError

    def id_of(self, session: dict[str, Any]) -> int:
        raise NotImplementedError

    def error(self, body: bytes) -> tuple[str, str]:
        """Code and text of an error; fails for a body of another shape."""
        raise NotImplementedError

    no_token: ClassVar[tuple[str, str]]
    not_found: ClassVar[tuple[str, str]]

    def listed(self, world: World, bearing: str, query: str = "") -> list[dict[str, Any]]:
        answer = world.fetch(self.list_path + query, bearing)
        assert answer.status == 200, answer
        return self.sessions(answer)

    def ids(self, world: World, bearing: str, query: str = "") -> list[int]:
        return [self.id_of(session) for session in self.listed(world, bearing, query)]

    def end(self, world: World, bearing: str, session: int | str) -> Answer:
        return world.fetch(self.one_path.replace("{id}", str(session)), bearing, method="DELETE")

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        one = self.one_path.replace("{id}", str(session))
        return [("GET", self.list_path), ("DELETE", self.all_path), ("DELETE", one)]

    # The rules

    def test_every_operation_wants_a_token(self, world: World) -> None:  # B-08
        for method, path in self.operations():
            answer = world.refused(path, method=method)
            assert (answer.status, self.error(answer.body)) == (401, self.no_token)
            assert answer.get_all("www-authenticate") == ["Bearer"]

    def test_a_list_shows_exactly_the_callers_live_sessions_newest_activity_first(self, world: World) -> None:
        user, other = someone(), someone()
        first, second, third = (token(user) for _ in range(3))
        world.passed("/", token(other))
        mine = [int(world.passed("/", bearing).get_all("x-session-id")[0]) for bearing in (first, second, third)]
        world.passed("/", first)
        # The listing itself is activity of the third.
        assert self.ids(world, third) == [mine[2], mine[0], mine[1]]

    def test_a_session_has_its_fields_in_their_order_and_precision(self, world: World) -> None:  # B-05, B-06, D-02
        (session,) = self.listed(world, token(someone()))
        assert list(session) == self.session_keys
        fraction = rf"\.\d{{{self.decimals}}}" if self.decimals else ""
        for name in self.times:
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d{fraction}Z", session[name])
            moment = datetime.fromisoformat(session[name])
            assert name == "expires_at" or abs((datetime.now(UTC) - moment).total_seconds()) < 30
        assert session["is_active"] is True
        assert session["ip_address"] == "127.0.0.1"

    def test_a_list_holds_no_credential_and_nothing_of_others(self, world: World) -> None:  # S26
        user, other = someone(), someone()
        bearing, jti = token(user), uuid.uuid4().hex
        world.passed("/", token(user, jti=jti))
        world.passed("/", token(other))
        text = world.fetch(self.list_path, bearing).body.decode()
        assert jti not in text
        assert other not in text
        assert not any(part in text for part in bearing.split("."))

    def test_an_ended_session_leaves_the_list_and_is_refused_at_once(self, world: World) -> None:  # C-13, E-07
        user = someone()
        laptop, phone = token(user), token(user)
        world.passed("/", phone)
        (_, phone_session) = self.ids(world, laptop)
        assert self.end(world, laptop, phone_session).status == 200
        assert len(self.ids(world, laptop)) == 1
        assert world.refused("/", phone).status == 401
        assert self.error(self.end(world, laptop, phone_session).body) == self.not_found

    def test_the_answer_to_the_end_of_the_own_session_is_delivered(self, world: World) -> None:
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        assert self.end(world, bearing, mine).status == 200
        answer = world.refused(self.list_path, bearing)
        assert answer.status == 401

    def test_what_is_not_the_callers_is_not_there(self, world: World) -> None:  # B-11, B-15, S13
        mine, theirs = token(someone()), token(someone())
        (foreign,) = self.ids(world, theirs)
        (own,) = self.ids(world, mine)
        answer = self.end(world, mine, foreign)
        assert (answer.status, self.error(answer.body)) == (404, self.not_found)
        # Not there and not yours are one answer.
        unknown = self.end(world, mine, 4)
        assert (unknown.status, self.error(unknown.body)) == (404, self.not_found)
        assert self.ids(world, theirs) == [foreign]
        assert self.ids(world, mine) == [own]

    @pytest.mark.parametrize("no_id", NO_IDS)
    def test_an_id_that_is_no_id_is_the_same_not_found(self, world: World, no_id: str) -> None:  # A-04, S13
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        answer = self.end(world, bearing, no_id)
        assert (answer.status, self.error(answer.body)) == (404, self.not_found)
        assert self.ids(world, bearing) == [mine]

    def test_a_trailing_slash_changes_nothing_and_is_no_redirect(self, world: World) -> None:
        bearing = token(someone())
        (mine,) = self.ids(world, bearing)
        assert [self.id_of(row) for row in self.sessions(world.fetch(self.list_path + "/", bearing))] == [mine]
        assert self.end(world, bearing, f"{mine}/").status == 200

    def test_head_answers_as_get_without_the_body(self, world: World) -> None:
        bearing = token(someone())
        world.passed("/", bearing)
        got = world.fetch(self.list_path, bearing, headers=[("X-Request-Id", "x")])
        head = world.fetch(self.list_path, bearing, method="HEAD", headers=[("X-Request-Id", "x")])
        assert (head.status, head.body) == (200, b"")
        assert head.headers == got.headers

    def test_all_ends_the_current_session_too(self, world: World) -> None:  # B-03
        user = someone()
        laptop, phone, other = token(user), token(user), token(someone())
        for bearing in (phone, laptop, other):
            world.passed("/", bearing)
        assert world.fetch(self.all_path, laptop, method="DELETE").status == 200
        assert world.refused("/", phone).status == world.refused("/", laptop).status == 401
        assert world.store.live(user) == 0
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
        assert answer.status == 400
        assert self.error(answer.body)[0].lower() == "bad_request"
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
        assert world.fetch(f"{self.list_path}?include_inactive=maybe", laptop).status == 400

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

    def test_a_dead_token_gets_this_dialects_error(self, world: World) -> None:
        bearing = token(someone())
        world.fetch("/sessions/logout", bearing, method="DELETE")
        for method, path in self.operations():
            answer = world.refused(path, bearing, method=method)
            assert answer.status == 401
            assert self.error(answer.body)

    def test_other_methods_are_the_backends(self, world: World) -> None:
        bearing = token(someone())
        for method in ("POST", "PUT"):
            assert world.passed(self.list_path, bearing, method=method).method == method
            assert world.refused(self.list_path, method=method).status == 401

    def test_its_paths_are_the_backends_where_it_is_switched_off(self, without: World) -> None:
        bearing = token(someone())
        for method, path in self.operations():
            request = without.passed(path, bearing, method=method)
            assert (request.method, request.target) == (method, path)
            assert without.refused(path, method=method).status == 401

    def test_a_cookie_may_list(self, world: World) -> None:
        bearing = token(someone())
        answer = world.fetch(self.list_path, headers=[("Cookie", f"access_token={bearing}")])
        assert len(self.sessions(answer)) == 1
        # Two credentials of one user are one caller.
        both = [bearer(bearing), ("Cookie", f"access_token={bearing}")]
        assert len(self.sessions(world.fetch(self.list_path, headers=both))) == 1

    def test_a_round_trip_for_the_verdict_and_one_for_the_operation(self, world: World) -> None:
        bearing = token(someone())
        world.passed("/", bearing)
        before = world.store.scripts_run
        self.ids(world, bearing)
        assert world.store.scripts_run - before == 2

    def test_the_bodies_are_compact_json_in_utf8(self, world: World) -> None:
        answer = world.fetch(self.list_path, token(someone()), headers=[("User-Agent", "Zoë/1")])
        assert answer.body == json.dumps(json.loads(answer.body), ensure_ascii=False, separators=(",", ":")).encode()
