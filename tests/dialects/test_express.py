"""The `express` dialect, byte for byte as its seed has it (B-01 to B-15)."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest

from tests.contracts.dialect import CHROME_ON_WINDOWS, SessionsContract
from tests.servers import ClientResponse
from tests.system.sidecar import World, masked, someone, token

UNAUTHORIZED = (
    b'{"success":false,"message":"Unauthorized","error":{"code":"UNAUTHORIZED",'
    b'"details":"Invalid or missing authentication token"},"timestamp":"<milliseconds>","requestId":"<uuid>"}'
)
NOT_FOUND = (
    b'{"success":false,"message":"Session not found or unauthorized","error":{"code":"SESSION_NOT_FOUND",'
    b'"details":"The requested session does not exist or you don\'t have permission to %s it"},'
    b'"timestamp":"<milliseconds>","requestId":"<uuid>"}'
)


def success(message: bytes) -> bytes:
    return b'{"success":true,"message":"%s","timestamp":"<milliseconds>","requestId":"<uuid>"}' % message


class TestExpress(SessionsContract):
    name: ClassVar = "express"
    list_path: ClassVar = "/api/sessions"
    all_path: ClassVar = "/api/sessions"
    one_path: ClassVar = "/api/sessions/{id}"
    decimals: ClassVar = 3
    session_keys: ClassVar = ["id", "ip_address", "user_agent", "created_at", "expires_at", "is_active"]
    times: ClassVar = ["created_at", "expires_at"]
    no_token: ClassVar = ("UNAUTHORIZED", "Invalid or missing authentication token")
    not_found: ClassVar = (
        "SESSION_NOT_FOUND",
        "The requested session does not exist or you don't have permission to delete it",
    )

    def sessions(self, answer: ClientResponse) -> list[dict[str, Any]]:
        body = json.loads(answer.body)
        assert list(body) == ["success", "message", "data", "timestamp", "requestId"]
        assert all(list(row) == self.session_keys for row in body["data"])
        return list(body["data"])

    def id_of(self, session: dict[str, Any]) -> int:
        assert re.fullmatch(r"session_[1-9]\d{0,15}", session["id"])
        return int(session["id"].removeprefix("session_"))

    def error(self, body: bytes) -> tuple[str, str]:
        found = json.loads(body)
        assert list(found) == ["success", "message", "error", "timestamp", "requestId"]
        assert list(found["error"]) == ["code", "details"]
        assert found["success"] is False
        return found["error"]["code"], found["error"]["details"]

    def operations(self, session: int | str = 1) -> list[tuple[str, str]]:
        return [*super().operations(session), ("PATCH", f"/api/sessions/{session}/deactivate")]

    def test_the_list(self, world: World) -> None:  # B-01, B-05, B-06, B-14
        answer = world.fetch("/api/sessions", token(someone()), headers=[("User-Agent", CHROME_ON_WINDOWS)])
        assert answer.status == 200
        assert masked(answer.body) == (
            b'{"success":true,"message":"Sessions retrieved successfully","data":[{"id":"session_<id>",'
            b'"ip_address":"127.0.0.1","user_agent":"' + CHROME_ON_WINDOWS.encode() + b'",'
            b'"created_at":"<milliseconds>","expires_at":"<milliseconds>","is_active":true}],'
            b'"timestamp":"<milliseconds>","requestId":"<uuid>"}'
        )

    def test_sessions_expire_24_hours_after_they_began(self, world: World) -> None:  # B-12
        (session,) = self.listed(world, token(someone()))
        created, expires = (datetime.fromisoformat(session[name]) for name in ("created_at", "expires_at"))
        assert expires - created == timedelta(hours=24)

    @pytest.mark.parametrize("form", ["session_{}", "{}"])
    def test_the_end_of_one(self, world: World, form: str) -> None:  # B-02
        bearing = token(someone())
        (session,) = self.ids(world, bearing)
        answer = self.end(world, bearing, form.format(session))
        assert (answer.status, masked(answer.body)) == (200, success(b"Session deleted successfully"))

    def test_the_end_of_all(self, world: World) -> None:  # B-03
        answer = world.fetch("/api/sessions", token(someone()), method="DELETE")
        assert (answer.status, masked(answer.body)) == (200, success(b"All sessions deleted successfully"))

    @pytest.mark.parametrize("form", ["session_{}", "{}"])
    def test_a_deactivation(self, world: World, form: str) -> None:  # B-04, B-13
        user = someone()
        bearing, other = token(user), token(user)
        (session,) = self.ids(world, bearing)
        path = f"/api/sessions/{form.format(session)}/deactivate"
        answer = world.fetch(path, other, method="PATCH")
        assert (answer.status, masked(answer.body)) == (200, success(b"Session deactivated successfully"))
        again = world.fetch(path + "/", other, method="PATCH")
        assert (again.status, masked(again.body)) == (404, NOT_FOUND % b"deactivate")

    def test_401_to_the_letter(self, world: World) -> None:  # B-08
        revoked = token(someone())
        world.fetch("/api/sessions", revoked, method="DELETE")
        for method, path in self.operations():
            for bearing in (None, "x", revoked, token(someone(), exp=1)):
                answer = world.refused(path, bearing, method=method)
                assert (answer.status, masked(answer.body)) == (401, UNAUTHORIZED)

    def test_404_to_the_letter(self, world: World) -> None:  # B-09, B-10
        bearing = token(someone())
        deleted = world.fetch("/api/sessions/session_123", bearing, method="DELETE")
        assert (deleted.status, masked(deleted.body)) == (404, NOT_FOUND % b"delete")
        deactivated = world.fetch("/api/sessions/session_123/deactivate", bearing, method="PATCH")
        assert (deactivated.status, masked(deactivated.body)) == (404, NOT_FOUND % b"deactivate")

    def test_a_foreign_session_cannot_be_deactivated(self, world: World) -> None:  # B-11, B-15
        mine, theirs = token(someone()), token(someone())
        (foreign,) = self.ids(world, theirs)
        answer = world.fetch(f"/api/sessions/{foreign}/deactivate", mine, method="PATCH")
        assert (answer.status, masked(answer.body)) == (404, NOT_FOUND % b"deactivate")
        assert self.ids(world, theirs) == [foreign]

    def test_400_in_its_envelope(self, world: World) -> None:
        answer = world.fetch("/api/sessions?exclude_current=2", token(someone()), method="DELETE")
        assert masked(answer.body) == (
            b'{"success":false,"message":"Bad Request","error":{"code":"BAD_REQUEST",'
            b'"details":"exclude_current must be given once, as true or false"},'
            b'"timestamp":"<milliseconds>","requestId":"<uuid>"}'
        )

    def test_the_request_id_is_shown_as_it_is_if_it_is_a_uuid(self, world: World) -> None:  # B-05
        given = str(uuid.uuid4())
        answer = world.fetch("/api/sessions", token(someone()), headers=[("X-Request-Id", given)])
        assert json.loads(answer.body)["requestId"] == given == answer.get_all("x-request-id")[0]
        refused = world.fetch("/api/sessions", headers=[("X-Request-Id", given)])
        assert json.loads(refused.body)["requestId"] == given
        made = world.fetch("/api/sessions", token(someone()))
        assert json.loads(made.body)["requestId"] == made.get_all("x-request-id")[0]

    def test_another_request_id_is_shown_as_the_uuid_that_is_made_from_it(self, world: World) -> None:  # B-05
        bearing = token(someone())
        shown: dict[str, str] = {}
        for given in ("order-1", "order-2", "x" * 36, uuid.uuid4().hex, "order-1"):
            body = json.loads(world.fetch("/api/sessions", bearing, headers=[("X-Request-Id", given)]).body)
            assert uuid.UUID(body["requestId"]).version == 5
            assert shown.setdefault(given, body["requestId"]) == body["requestId"]
        assert len(set(shown.values())) == 4
