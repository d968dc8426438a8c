"""The `django` dialect, byte for byte as its seed has it (A-01 to A-25)."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any, ClassVar

import pytest

from tests.contracts.dialect import CHROME_ON_WINDOWS, NO_IDS, SessionsContract
from tests.contracts.responses import assert_own_response
from tests.servers import ClientResponse
from tests.system.sidecar import World, masked, someone, token

FAMILIES = ["/api/v1/auth/users/me/sessions", "/api/v1/users/me/sessions"]


def fault(code: str, message: str) -> bytes:
    return b'{"success":false,"error":{"code":"%s","message":"%s"}}' % (code.encode(), message.encode())


def all_terminated(count: int) -> bytes:
    return b'{"success":true,"message":"All sessions terminated successfully","data":{"terminated_count":%d}}' % count


NOT_FOUND = fault("SESSION_NOT_FOUND", "Session not found or already terminated")


class DjangoContract(SessionsContract):
    """Both families of paths keep all of it (A-25)."""

    name: ClassVar = "django"
    decimals: ClassVar = 0
    session_keys: ClassVar = [
        "id",
        "session_key",
        "ip_address",
        "user_agent",
        "device_info",
        "location",
        "is_active",
        "last_activity",
        "created_at",
        "device_name",
        "login_method",
        "is_current",
    ]
    times: ClassVar = ["created_at", "last_activity"]
    no_token: ClassVar = ("UNAUTHORIZED", "Authentication credentials were not provided")
    not_found: ClassVar = ("SESSION_NOT_FOUND", "Session not found or already terminated")

    def sessions(self, answer: ClientResponse) -> list[dict[str, Any]]:
        body = json.loads(answer.body)
        assert (list(body), list(body["data"])) == (["success", "data"], ["sessions", "total_count"])
        rows = body["data"]["sessions"]
        assert (body["success"], body["data"]["total_count"]) == (True, len(rows))
        assert all(list(row) == self.session_keys for row in rows)
        return list(rows)

    def error(self, body: bytes) -> tuple[str, str]:
        found = json.loads(body)
        assert (list(found), list(found["error"])) == (["success", "error"], ["code", "message"])
        assert found["success"] is False
        return found["error"]["code"], found["error"]["message"]

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        ends = [("DELETE", f"{self.list_path}{rest}") for rest in ("", "all/", f"{session}/")]
        return [("GET", self.list_path), *ends]

    def test_the_list(self, world: World) -> None:
        answer = world.fetch(self.list_path, token(someone()), headers=[("User-Agent", CHROME_ON_WINDOWS)])
        body = masked(answer.body)
        key = json.loads(answer.body)["data"]["sessions"][0]["session_key"].encode()
        assert_own_response(answer, 200, answer.body)
        assert body == (
            b'{"success":true,"data":{"sessions":[{"id":<id>,"session_key":"' + key + b'","ip_address":"127.0.0.1",'
            b'"user_agent":"' + CHROME_ON_WINDOWS.encode() + b'","device_info":{"browser":"Chrome","os":"Windows",'
            b'"device":"Desktop"},"location":"","is_active":true,"last_activity":"<seconds>",'
            b'"created_at":"<seconds>","device_name":"Chrome on Windows","login_method":"token","is_current":true}],'
            b'"total_count":1}}'
        )

    def test_the_session_key_is_the_beginning_of_a_hash(self, world: World) -> None:
        for claims in ({"jti": uuid.uuid4().hex}, {"sid": uuid.uuid4().hex}, {"sid": "s-1", "jti": "j-1"}):
            (row,) = self.listed(world, token(someone(), **claims))
            named = claims.get("sid", claims.get("jti", ""))
            assert row["session_key"] == hashlib.sha256(named.encode()).hexdigest()[:6] + "..."

    def test_the_end_of_one_names_it(self, world: World) -> None:
        bearing = token(someone())
        (row,) = json.loads(world.fetch(self.list_path, bearing, headers=[("User-Agent", CHROME_ON_WINDOWS)]).body)[
            "data"
        ]["sessions"]
        assert_own_response(
            self.end(world, bearing, row["id"]),
            200,
            b'{"success":true,"message":"Session terminated successfully","data":{"session_id":%d,'
            b'"device_name":"Chrome on Windows"}}' % row["id"],
        )

    @pytest.mark.parametrize("rest", ["/", "", "/all/", "/all"])
    def test_the_end_of_all_tells_how_many(self, world: World, rest: str) -> None:
        user = someone()
        bearers = [token(user) for _ in range(3)]
        for bearing in bearers:
            world.passed("/", bearing)
        path = self.list_path.removesuffix("/") + rest
        spared = world.fetch(f"{path}?exclude_current=true", bearers[0], method="DELETE")
        assert_own_response(spared, 200, all_terminated(2))
        assert_own_response(world.fetch(path, bearers[0], method="DELETE"), 200, all_terminated(1))
        assert world.store.live(user) == 0

    def test_all_is_never_an_id(self, world: World) -> None:
        bearing = token(someone())
        assert_own_response(world.fetch(self.path_of("all"), bearing, method="DELETE"), 200, all_terminated(1))

    @pytest.mark.parametrize("no_id", [*NO_IDS, "session_1", "ALL"])
    def test_404_to_the_letter(self, world: World, no_id: str) -> None:
        if no_id == "ALL":
            # It could be read as `all`.
            assert world.refused(self.path_of(no_id), token(someone()), method="DELETE").status in {400, 404}
            return
        answer = world.refused(self.path_of(no_id), token(someone()), method="DELETE")
        assert_own_response(answer, 404, NOT_FOUND)

    def test_401_to_the_letter(self, world: World) -> None:
        revoked, gone = token(someone()), token(someone())
        world.fetch(self.all_path, revoked, method="DELETE")
        world.fetch("/sessions/logout", gone, method="DELETE")
        for bearing, message in [
            (None, "Authentication credentials were not provided"),
            ("x", "Invalid authentication token"),
            (token(someone(), exp=1), "Access token has expired"),
            (revoked, "Session has been revoked or is invalid"),
            (gone, "Access token has been revoked"),
        ]:
            for method, path in self.operations():
                answer = world.refused(path, bearing, method=method)
                assert_own_response(answer, 401, fault("UNAUTHORIZED", message))

    def test_400_in_its_envelope(self, world: World) -> None:
        answer = world.fetch(f"{self.all_path}?exclude_current=2", token(someone()), method="DELETE")
        assert_own_response(answer, 400, fault("BAD_REQUEST", "exclude_current must be given once, as true or false"))


class TestDjango(DjangoContract):
    list_path: ClassVar = f"{FAMILIES[0]}/"
    all_path: ClassVar = f"{FAMILIES[0]}/"
    one_path: ClassVar = f"{FAMILIES[0]}/{{id}}/"


class TestDjangoWithoutAuth(DjangoContract):
    """The second family, whose end of all has a path of its own (A-25)."""

    list_path: ClassVar = f"{FAMILIES[1]}/"
    all_path: ClassVar = f"{FAMILIES[1]}/all/"
    one_path: ClassVar = f"{FAMILIES[1]}/{{id}}/"
