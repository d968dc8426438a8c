"""The sidecar as a process keeps the rules of the gate (`GateContract`)."""

from __future__ import annotations

from tests.contracts.gate import GateContract
from tests.system.sidecar import World, someone, token


class TestTheSidecar(GateContract):
    def test_connection_cannot_name_away_what_gatekeeper_says(self, world: World) -> None:  # H04
        user = someone()
        named = "close, X-User-Id, Authorization, X-Forwarded-For, Cookie, X-Request-Id, X-Mine"
        request = world.passed("/", token(user), headers=[("Connection", named), ("Cookie", "a=b"), ("X-Mine", "1")])
        assert request.get_all("x-user-id") == [user]
        assert request.get_all("x-forwarded-for") == ["127.0.0.1"]
        assert len(request.get_all("authorization")) == len(request.get_all("x-request-id")) == 1
        assert request.get_all("cookie") == ["a=b"]
        assert request.get_all("x-mine") == []
        assert not [value for value in request.get_all("connection") if "x-" in value.lower()]
