"""The `users_me` dialect, field by field (E-01 to E-08)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar

import pytest

from tests.contracts.dialect import CHROME_ON_WINDOWS, NO_IDS, SessionsContract, detail_and_code
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, masked, someone, token


def all_revoked(count: int) -> bytes:
    return b'{"success":true,"message":"All other sessions revoked","revoked_count":%d}' % count


class TestUsersMe(SessionsContract):
    name: ClassVar = "users_me"
    list_path: ClassVar = "/api/users/me/sessions"
    all_path: ClassVar = "/api/users/me/sessions"
    one_path: ClassVar = "/api/users/me/sessions/{id}"
    decimals: ClassVar = 6
    session_keys: ClassVar = [
        "id",
        "device_info",
        "device_name",
        "ip_address",
        "location_data",
        "last_activity",
        "created_at",
        "expires_at",
        "is_active",
        "is_current",
    ]
    times: ClassVar = ["last_activity", "created_at", "expires_at"]
    all_spares: ClassVar = True
    no_token: ClassVar = ("token_missing", "Authentication credentials were not provided")
    not_found: ClassVar = ("session_not_found", "Session not found or already terminated")

    def sessions(self, answer: ClientResponse) -> list[dict[str, Any]]:
        body = json.loads(answer.body)
        assert isinstance(body, list)
        assert all(list(row) == self.session_keys for row in body)
        return body

    def error(self, body: bytes) -> tuple[str, str]:
        return detail_and_code(body)

    def test_the_list(self, world: World) -> None:  # E-01, E-04, E-08: the address alone
        answer = world.fetch(self.list_path, token(someone()), headers=[("User-Agent", CHROME_ON_WINDOWS)])
        assert_own_response(answer, 200, answer.body)
        assert masked(answer.body) == (
            b'[{"id":<id>,"device_info":{"browser":"Chrome","os":"Windows","device":"Desktop"},'
            b'"device_name":"Chrome on Windows","ip_address":"127.0.0.1","location_data":null,'
            b'"last_activity":"<microseconds>","created_at":"<microseconds>","expires_at":"<microseconds>",'
            b'"is_active":true,"is_current":true}]'
        )

    def test_every_request_moves_the_activity_by_at_least_a_microsecond(self, world: World) -> None:  # E-06
        bearing = token(someone())
        seen = [datetime.fromisoformat(self.listed(world, bearing)[0]["last_activity"]) for _ in range(5)]
        assert seen == sorted(set(seen))

    def test_the_end_of_one_names_it(self, world: World) -> None:  # E-02
        bearing = token(someone())
        (session,) = self.ids(world, bearing)
        expected = b'{"success":true,"message":"Session revoked","session_id":%d}' % session
        assert_own_response(self.end(world, bearing, session), 200, expected)

    def test_the_end_of_all_others_tells_how_many(self, world: World) -> None:  # E-03
        user = someone()
        bearers = [token(user) for _ in range(3)]
        for bearing in bearers:
            world.passed("/", bearing)
        assert_own_response(world.fetch(self.all_path, bearers[0], method="DELETE"), 200, all_revoked(2))
        assert_own_response(world.fetch(self.all_path, bearers[0], method="DELETE"), 200, all_revoked(0))
        world.passed("/", bearers[0])
        everything = world.fetch(f"{self.all_path}?exclude_current=false", bearers[0], method="DELETE")
        assert_own_response(everything, 200, all_revoked(1))
        assert world.refused("/", bearers[0]).status == 401

    @pytest.mark.parametrize("no_id", [*NO_IDS, "session_1", "all"])
    def test_404_to_the_letter(self, world: World, no_id: str) -> None:
        answer = self.end(world, token(someone()), no_id)
        assert_own_response(answer, 404, error_body("session_not_found"))

    def test_401_to_the_letter(self, world: World) -> None:
        gone = token(someone())
        world.fetch("/sessions/logout", gone, method="DELETE")
        for method, path in self.operations():
            assert_own_response(world.refused(path, method=method), 401, error_body("token_missing"))
            answer = world.refused(path, gone, method=method)
            assert_own_response(answer, 401, error_body("access_token_blacklisted", "logged_out"))


@pytest.fixture(scope="class")
def located(store: Store) -> Iterator[World]:
    with mounted(store, geo="country", trusted_proxies="127.0.0.1") as made:
        yield made


class TestLocation:
    """Where a session was opened, with a data set (A-13, E-04, E-08)."""

    @pytest.mark.parametrize(("address", "country"), [("8.8.8.8", "US"), ("2001:4860:4860::8888", "US")])
    def test_a_country_stands_where_a_dialect_has_a_place_for_it(
        self, located: World, address: str, country: str
    ) -> None:
        bearing = token(someone())
        answer = located.fetch("/api/users/me/sessions", bearing, headers=[("X-Forwarded-For", address)])
        (row,) = json.loads(answer.body)
        assert (row["ip_address"], row["location_data"]) == (address, {"city": None, "country": country})
        listed = json.loads(located.fetch("/api/v1/users/me/sessions/", bearing).body)
        assert listed["data"]["sessions"][0]["location"] == country

    def test_a_private_address_has_none(self, located: World) -> None:
        bearing = token(someone())
        (row,) = json.loads(located.fetch("/api/users/me/sessions", bearing).body)
        assert row["location_data"] is None
        listed = json.loads(located.fetch("/api/v1/users/me/sessions/", bearing).body)
        assert listed["data"]["sessions"][0]["location"] == ""
