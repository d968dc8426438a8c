"""The `fastapi` dialect: what administrators and developers look at (C-07 to C-09, C-20 to C-24, C-30)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.contracts.dialect import DialectContract, admin, detail_and_code, toggled
from tests.contracts.responses import TABLE, assert_own_response, error_body
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, eventually, masked, someone, token

ACTIVE, CLEAN_UP, INFO = "/admin/sessions/active", "/admin/sessions/cleanup", "/debug/session-info"
SESSION = b'{"jti":"%s","created_at":"<microseconds>","last_activity":"<microseconds>","expires_at":"<microseconds>"}'


@pytest.fixture(scope="class")
def open_to_all(store: Store) -> Iterator[World]:
    with mounted(store, debug_endpoints="true") as made:
        yield made


class TestFastapi(DialectContract):
    name: ClassVar = "fastapi"
    no_token: ClassVar = ("token_missing", "Authentication credentials were not provided")

    def error(self, body: bytes) -> tuple[str, str]:  # C-24
        return detail_and_code(body)

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        return [("GET", ACTIVE), ("POST", CLEAN_UP), ("GET", INFO)]

    def test_an_administrator_sees_their_own_sessions(self, world: World) -> None:  # C-07
        me = someone()
        bearing = token(me, roles=["admin"], jti="j-one")
        for path in (ACTIVE, toggled(ACTIVE)):
            answer = world.fetch(path, bearing)
            assert_own_response(answer, 200, answer.body)
            expected = b'{"user_id":%s,"active_sessions":1,"sessions":[%s]}' % (me.encode(), SESSION % b"j-one")
            assert masked(answer.body) == expected

    def test_an_administrator_asks_for_a_user(self, world: World) -> None:  # C-07
        user = someone()
        for jti in ("j-one", "j-two"):
            world.passed("/", token(user, jti=jti))
        answer = world.fetch(f"{ACTIVE}?user_id={user}", admin())
        sessions = b",".join(SESSION % jti for jti in (b"j-two", b"j-one"))
        assert masked(answer.body) == b'{"user_id":%s,"active_sessions":2,"sessions":[%s]}' % (user.encode(), sessions)
        nobody = world.fetch(f"{ACTIVE}?user_id=nobody", admin())
        assert_own_response(nobody, 200, b'{"user_id":"nobody","active_sessions":0,"sessions":[]}')
        twice = world.fetch(f"{ACTIVE}?user_id=1&user_id=2", admin())
        assert_own_response(twice, 400, b'{"detail":"user_id must be given once","code":"bad_request"}')

    def test_the_jti_is_the_newest_tokens_else_the_reference(self, world: World) -> None:  # C-07, C-09, C-17
        me, now = someone(), int(time.time())
        older = token(me, roles=["admin"], sid="s-1", jti="j-old", exp=now + 300)
        newer = token(me, roles=["admin"], sid="s-1", jti="j-new", exp=now + 600)
        bare = token(me, roles=["admin"], sid="s-2", jti=...)
        for bearing in (older, newer, bare):
            world.passed("/", bearing)
        shown = json.loads(world.fetch(ACTIVE, older).body)
        assert [row["jti"] for row in shown["sessions"]] == ["j-new", "s-2"]
        assert [json.loads(world.fetch(INFO, each).body)["jti"] for each in (older, newer, bare)] == [
            "j-new",
            "j-new",
            "s-2",
        ]

    def test_session_info(self, world: World, open_to_all: World) -> None:  # C-09, C-30, C-34
        me = someone()
        for world_, bearing in [
            (world, token(me, jti="j-one", roles=["admin"])),
            (open_to_all, token(me, jti="j-one")),
        ]:
            for path in (INFO, toggled(INFO)):
                answer = world_.fetch(path, bearing)
                expected = b'{"user_id":%s,"jti":"j-one","session_valid":true,"active_sessions":1}' % me.encode()
                assert_own_response(answer, 200, expected)

    def test_nobody_else_gets_through(self, world: World, open_to_all: World) -> None:  # C-07, C-08, C-09, D-10
        for roles in ([], ["user"], ["Admin"], ["administrator"], "user;admin", {"admin": False}, [["admin"]]):
            bearing = token(someone(), roles=roles)
            for method, path in self.operations():
                assert_own_response(world.refused(path, bearing, method=method), 403, error_body("forbidden"))
            for method, path in self.operations()[:2]:
                assert_own_response(open_to_all.refused(path, bearing, method=method), 403, error_body("forbidden"))

    def test_head_answers_as_get_without_the_body(self, world: World) -> None:
        for path in (ACTIVE, INFO):
            head = world.fetch(path, admin(), method="HEAD")
            assert (head.status, head.body) == (200, b"")

    def test_the_codes_of_refused_requests(
        self, world: World
    ) -> None:  # C-20…C-24: shape, and those that need no clock
        gone, revoked = token(someone()), token(someone())
        world.fetch("/sessions/logout", gone, method="DELETE")
        world.fetch("/sessions/all", revoked, method="DELETE")
        for bearing, code, reason in [
            (gone, "access_token_blacklisted", "logged_out"),  # C-23
            (revoked, "session_revoked_or_invalid", "revoked_by_user"),  # C-22
        ]:
            for path in (INFO, "/protected"):
                assert_own_response(world.refused(path, bearing), 401, error_body(code, reason))
        assert TABLE["access_token_blacklisted"] == (401, "Access token has been revoked")


class TestTimeAndRoom:
    """What needs settings of its own."""

    def test_a_silent_session_is_told_so(self, store: Store) -> None:  # C-20, C-24
        with mounted(store, idle_timeout="0.3s") as world:
            user = someone()
            bearing = token(user, roles=["admin"])
            world.passed("/", bearing)
            eventually(lambda: _silent(world, user))
            refused = error_body("session_inactivity_timeout", "idle")
            assert_own_response(world.refused(INFO, bearing), 401, refused)

    def test_a_full_account_is_told_so(self, store: Store) -> None:  # C-12, C-21, C-24
        with mounted(store, device_limit="1", device_limit_policy="reject") as world:
            user = someone()
            world.passed("/", token(user))
            for path in (INFO, "/protected"):
                answer = world.refused(path, token(user, roles=["admin"]))
                assert_own_response(answer, 403, error_body("session_limit_exceeded"))

    def test_cleanup_counts_what_it_removed(self, store: Store) -> None:  # C-08
        with mounted(store, idle_timeout="0.3s", key_prefix="cleanup:", exempt_users="role:admin") as world:
            bearing, users = admin(), [someone() for _ in range(3)]
            for user in users:
                world.passed("/", token(user))
            found: list[int] = []

            def cleaned() -> bool:
                answer = world.fetch(CLEAN_UP, bearing, method="POST")
                assert answer.status == 200
                assert re.fullmatch(rb'\{"cleaned_sessions":\d+\}', answer.body)
                found.append(json.loads(answer.body)["cleaned_sessions"])
                return sum(found) == len(users)

            eventually(cleaned)
            assert_own_response(world.fetch(CLEAN_UP, bearing, method="POST"), 200, b'{"cleaned_sessions":0}')


def _silent(world: World, user: str) -> bool:
    """Whether the only session of `user` has been silent for too long; asked without being heard."""
    seconds, microseconds = world.store.client.time()
    return int(seconds) * 1_000_000 + int(microseconds) - world.store.last_activity(user) >= 300_000
