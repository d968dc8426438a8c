"""The `mockstream` dialect, byte for byte as its seed has it (D-01 to D-11)."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import pytest

from tests.contracts.dialect import (
    CHROME_ON_WINDOWS,
    NO_IDS,
    SAFARI_ON_IPHONE,
    SessionsContract,
    admin,
    detail_and_code,
)
from tests.contracts.responses import assert_own_response, error_body
from tests.servers import ClientResponse
from tests.system.sidecar import World, masked, someone, token

CLOSED = b'{"success":true,"message":"Session closed successfully"}'
LOGGED_OUT = b'{"success":true,"message":"Current session closed successfully"}'


def all_closed(count: int) -> bytes:
    return b'{"success":true,"message":"All sessions closed successfully","closed_count":%d}' % count


class TestMockstream(SessionsContract):
    name: ClassVar = "mockstream"
    list_path: ClassVar = "/sessions/me"
    all_path: ClassVar = "/sessions/all"
    one_path: ClassVar = "/sessions/{id}"
    decimals: ClassVar = 0
    session_keys: ClassVar = [
        "id",
        "user_id",
        "device_name",
        "device_type",
        "browser",
        "ip_address",
        "created_at",
        "last_activity",
        "is_active",
    ]
    times: ClassVar = ["created_at", "last_activity"]
    no_token: ClassVar = ("token_missing", "Authentication credentials were not provided")
    not_found: ClassVar = ("session_not_found", "Session not found or already terminated")

    def sessions(self, answer: ClientResponse) -> list[dict[str, Any]]:
        body = json.loads(answer.body)
        assert isinstance(body, list)
        assert all(list(row) == self.session_keys for row in body)
        return body

    def error(self, body: bytes) -> tuple[str, str]:
        return detail_and_code(body)

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        user = "/sessions/user/74"
        of_admin = [("GET", user), ("DELETE", user), ("DELETE", f"{user}/{session}")]
        return [*super().operations(session), ("DELETE", "/sessions/logout"), *of_admin]

    def names(self, method: str, path: str) -> bool:
        # `me` is where the own list is, and by DELETE an id like any other.
        return super().names(method, path) or (method, path) == ("DELETE", "/sessions/me")

    def test_its_paths_are_the_backends_where_it_is_switched_off(
        self, without: World
    ) -> None:  # D-01: the 404 of today
        super().test_its_paths_are_the_backends_where_it_is_switched_off(without)

    def test_the_own_list(self, world: World) -> None:  # D-02, D-04, D-06, D-09
        user = someone()
        answer = world.fetch("/sessions/me", token(user), headers=[("User-Agent", CHROME_ON_WINDOWS)])
        assert answer.status == 200
        assert masked(answer.body) == (
            b'[{"id":<id>,"user_id":' + user.encode() + b',"device_name":"Chrome on Windows 10","device_type":"web",'
            b'"browser":"Chrome","ip_address":"127.0.0.1","created_at":"<seconds>","last_activity":"<seconds>",'
            b'"is_active":true}]'
        )

    @pytest.mark.parametrize(
        ("user", "shown"),
        [("74", 74), ("0", 0), ("999999999999999", 999999999999999), ("1000000000000000", "1000000000000000")]
        + [(text, text) for text in ("007", "-5", "1.0", "zoë", "a b", "+1", "1e3", "{x}", "٣")],
    )
    def test_a_user_id_is_a_number_where_it_is_canonical_decimal(
        self, world: World, user: str, shown: int | str
    ) -> None:  # D-02
        (row,) = self.listed(world, token(user))
        assert (row["user_id"], type(row["user_id"])) == (shown, type(shown))

    def test_an_administrator_sees_the_sessions_of_a_user(self, world: World) -> None:  # D-01, D-09, D-11
        user = someone()
        world.passed("/", token(user), headers=[("User-Agent", CHROME_ON_WINDOWS)])
        for path in (f"/sessions/user/{user}", f"/sessions/user/{user}/"):
            answer = world.fetch(path, admin())
            assert answer.status == 200
            assert masked(answer.body) == (
                b'[{"id":<id>,"user_id":' + user.encode() + b',"device_name":"Chrome on Windows 10",'
                b'"device_type":"web","browser":"Chrome","ip_address":"127.0.0.1","created_at":"<seconds>",'
                b'"last_activity":"<seconds>","is_active":true}]'
            )

    def test_looking_at_a_users_sessions_is_no_activity_of_theirs(self, world: World) -> None:
        user = someone()
        world.passed("/", token(user))
        seen = world.store.last_activity(user)
        world.fetch(f"/sessions/user/{user}", admin())
        assert world.store.last_activity(user) == seen

    def test_nobody_else_gets_through_to_the_admin_paths(self, world: World) -> None:  # D-01, D-10
        user = someone()
        theirs = token(user)
        (session,) = self.ids(world, theirs)
        for roles in ([], ["user"], ["Admin"], ["administrator"], "user;admin"):
            bearing = token(someone(), roles=roles)
            for method, path in [
                ("GET", f"/sessions/user/{user}"),
                ("HEAD", f"/sessions/user/{user}"),
                ("DELETE", f"/sessions/user/{user}"),
                ("DELETE", f"/sessions/user/{user}/{session}"),
            ]:
                answer = world.refused(path, bearing, method=method)
                assert_own_response(answer, 403, error_body("forbidden")) if method != "HEAD" else None
                assert answer.status == 403
        # Not even to one's own.
        assert world.refused(f"/sessions/user/{user}", theirs).status == 403
        assert self.ids(world, theirs) == [session]

    def test_an_unknown_user_has_no_sessions(self, world: World) -> None:
        bearing = admin()
        assert world.fetch(f"/sessions/user/{someone()}", bearing).body == b"[]"
        assert world.fetch(f"/sessions/user/{someone()}", bearing, method="DELETE").body == all_closed(0)
        answer = world.fetch(f"/sessions/user/{someone()}/1", bearing, method="DELETE")
        assert_own_response(answer, 404, error_body("session_not_found"))

    def test_a_user_is_named_in_the_path_percent_encoded(self, world: World) -> None:
        world.passed("/", token("zoë/1 *"))
        (row,) = json.loads(world.fetch("/sessions/user/zo%C3%AB%2F1%20*", admin()).body)
        assert row["user_id"] == "zoë/1 *"

    def test_an_administrator_ends_one_session_of_a_user(self, world: World) -> None:  # D-09
        user = someone()
        laptop, phone = token(user), token(user)
        (first,) = self.ids(world, laptop)
        (second, _) = self.ids(world, phone)
        bearing = admin()
        answer = world.fetch(f"/sessions/user/{user}/{second}", bearing, method="DELETE")
        assert_own_response(answer, 200, CLOSED)
        refused = world.refused("/", phone)
        assert refused.body == error_body("session_revoked_or_invalid", "revoked_by_admin")
        assert self.ids(world, laptop) == [first]
        # The session of another user is not there, for an administrator either.
        other = someone()
        world.passed("/", token(other))
        for no_id in (first, *NO_IDS):
            answer = world.fetch(f"/sessions/user/{other}/{no_id}", bearing, method="DELETE")
            assert_own_response(answer, 404, error_body("session_not_found"))
        assert world.store.live(other) == 1

    def test_an_administrator_ends_all_sessions_of_a_user(self, world: World) -> None:  # D-09
        user, bearing = someone(), admin()
        tokens = [token(user) for _ in range(3)]
        for each in tokens:
            world.passed("/", each)
        answer = world.fetch(f"/sessions/user/{user}", bearing, method="DELETE")
        assert_own_response(answer, 200, all_closed(3))
        for each in tokens:
            assert world.refused("/", each).body == error_body("session_revoked_or_invalid", "revoked_by_admin")
        world.passed("/", bearing)

    def test_exclude_current_spares_the_administrators_own_session_and_no_other(self, world: World) -> None:
        me, user = someone(), someone()
        mine, also_mine, theirs = token(me, roles=["admin"]), token(me), token(user)
        for bearing in (also_mine, theirs, mine):
            world.passed("/", bearing)
        answer = world.fetch(f"/sessions/user/{user}?exclude_current=true", mine, method="DELETE")
        assert_own_response(answer, 200, all_closed(1))
        answer = world.fetch(f"/sessions/user/{me}?exclude_current=true", mine, method="DELETE")
        assert_own_response(answer, 200, all_closed(1))
        world.passed("/", mine)
        # The admin's own id too is an end by an administrator.
        assert world.refused("/", also_mine).body == error_body("session_revoked_or_invalid", "revoked_by_admin")
        answer = world.fetch(f"/sessions/user/{me}", mine, method="DELETE")
        assert_own_response(answer, 200, all_closed(1))
        assert world.refused("/", mine).status == 401

    def test_an_administrator_sees_inactive_sessions_when_asked_for(self, world: World) -> None:
        user, bearing = someone(), admin()
        theirs = token(user)
        world.passed("/", theirs)
        world.fetch("/sessions/logout", theirs, method="DELETE")
        assert world.fetch(f"/sessions/user/{user}", bearing).body == b"[]"
        (row,) = json.loads(world.fetch(f"/sessions/user/{user}?include_inactive=true", bearing).body)
        assert row["is_active"] is False
        assert world.fetch(f"/sessions/user/{user}?include_inactive=1", bearing).status == 400

    def test_the_end_of_one(self, world: World) -> None:  # D-05, D-09
        bearing = token(someone())
        (session,) = self.ids(world, bearing)
        assert_own_response(self.end(world, bearing, session), 200, CLOSED)

    def test_the_end_of_all_tells_how_many(self, world: World) -> None:  # D-09
        user = someone()
        first, second = token(user), token(user)
        for bearing in (first, second):
            world.passed("/", bearing)
        assert_own_response(world.fetch("/sessions/all", first, method="DELETE"), 200, all_closed(2))

    @pytest.mark.parametrize("path", ["/sessions/logout", "/sessions/logout/"])
    def test_a_logout_closes_the_current_session_alone(self, world: World, path: str) -> None:  # D-03, D-08, D-11
        user = someone()
        laptop, phone = token(user), token(user)
        world.passed("/", phone)
        world.passed("/", laptop)
        assert_own_response(world.fetch(path, laptop, method="DELETE"), 200, LOGGED_OUT)
        assert world.refused("/", laptop).body == error_body("access_token_blacklisted", "logged_out")
        world.passed("/", phone)

    def test_a_logout_is_best_effort(self, world: World) -> None:  # D-03
        """Twice, with an expired token, and for a session that was never seen or is over otherwise: 200 each time."""
        user = someone()
        seen, unseen, revoked = token(user), token(user), token(user)
        expired = token(user, exp=int(time.time()) - 3600)
        world.passed("/", seen)
        (mine, *_) = self.ids(world, revoked)
        self.end(world, revoked, mine)
        for bearing in (seen, seen, unseen, revoked, expired, expired):
            assert_own_response(world.fetch("/sessions/logout", bearing, method="DELETE"), 200, LOGGED_OUT)
        # A token that logged out before it was ever used opens nothing afterwards.
        assert world.refused("/", unseen).body == error_body("access_token_blacklisted", "logged_out")
        assert world.refused("/", revoked).body == error_body("session_revoked_or_invalid", "revoked_by_user")
        assert world.refused("/", expired).body == error_body("token_expired")

    def test_a_logout_with_no_good_token_is_refused(self, world: World) -> None:  # D-13: by status and text
        assert_own_response(world.refused("/sessions/logout", method="DELETE"), 401, error_body("token_missing"))
        # Times are forgiven where a session ends: the clock of this host may be wrong.
        for bearing in ("x", token(someone(), exp=...), token(someone())[:-4]):
            answer = world.refused("/sessions/logout", bearing, method="DELETE")
            assert_own_response(answer, 401, error_body("token_invalid"))

    def test_a_literal_segment_is_asked_before_a_parameter(self, world: World) -> None:
        """`logout`, `all`, `user` and `me` are never ids."""
        bearing = token(someone())
        assert world.fetch("/sessions/logout", bearing, method="DELETE").body == LOGGED_OUT
        assert world.fetch("/sessions/all", token(someone()), method="DELETE").body == all_closed(1)
        # No path of ours, so the backend's.
        assert world.passed("/sessions/5", token(someone())).target == "/sessions/5"

    def test_the_public_id_of_another_dialect_is_no_id_here(self, world: World) -> None:
        bearing = token(someone())
        (session,) = self.ids(world, bearing)
        assert_own_response(self.end(world, bearing, f"session_{session}"), 404, error_body("session_not_found"))

    @pytest.mark.parametrize(
        ("user_agent", "device_name", "device_type", "browser"),
        [
            (CHROME_ON_WINDOWS, "Chrome on Windows 10", "web", "Chrome"),
            (SAFARI_ON_IPHONE, "Safari on iOS 17.2", "web", "Safari"),
            ("okhttp/4.12.0", "okhttp", "mobile_app", "okhttp"),
            ("curl/8.5.0", "curl", "api", "curl"),
            ("", "Unknown device", "api", "Unknown"),
        ],
    )
    def test_the_device_is_told_from_the_user_agent(
        self, world: World, user_agent: str, device_name: str, device_type: str, browser: str
    ) -> None:  # D-02
        headers = [("User-Agent", user_agent)] if user_agent else []
        (row,) = json.loads(world.fetch("/sessions/me", token(someone()), headers=headers).body)
        assert (row["device_name"], row["device_type"], row["browser"]) == (device_name, device_type, browser)
