"""Opaque API keys beside JWTs (OPAQUE_BEARER_PATHS), and errors in the backend's own shape (ERROR_BODY)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.middleware.host import mounted, sidecar_app
from tests.system.sidecar import Backend, Store, World, bearer, someone, token

KEY = "sk_live_0123456789abcdef"
BODY = (
    '{"statusCode":"{status}","message":"{detail}","error":{"code":"{code}","why":"{reason}"},"list":["{request_id}",1],'
    '"text":"{status} {code}: {reason}{nothing}","none":"{nothing}","{code}":true,"braces":"{}{ code }{CODE}"}'
)
OPTIONS: dict[str, Any] = {
    "rate_limit": "off",
    "opaque_bearer_paths": "/api/*,GET /read",
    "public_paths": "/api/public",
    "error_body": BODY,
    "token_sources": "header,cookie:access_token,header:X-Api-Token,query:t",
}


@pytest.fixture(scope="module", params=["middleware", "sidecar"])
def world(store: Store, request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "middleware":
        with mounted(store, **OPTIONS) as made:
            yield made
        return
    with Backend() as backend, sidecar_app(store, backend, **OPTIONS) as made:
        yield made


@pytest.mark.parametrize(
    "key",
    [KEY, "a" * 16, "a" * 512, "12|Zm9vYmFyYmF6cXV4", "abcdefgh.ijklmnop", "EyJhbGciOiJIUzI1NiJ9", "k~+/=_-k~+/=_-kk"],
)
def test_an_opaque_bearer_passes_as_it_is(world: World, key: str) -> None:
    for target in ("/api/x", "/read", "/api/public"):
        request = world.passed(target, headers=[("Authorization", f"Bearer {key}"), ("X-User-Id", "1"), ("a", "b")])
        assert request.get_all("authorization") == [f"Bearer {key}"]
        assert (request.get_all("x-user-id"), request.get_all("x-session-id"), request.get_all("a")) == ([], [], ["b"])


@pytest.mark.parametrize(
    "key",
    [
        "a" * 15,
        "a" * 513,
        "ey" + "a" * 30,
        "abcdefgh.ijklmnop.q",
        "a.b.c" * 5,
        "abcdefghijklmnop q",
        "abcdefghijklmno%",
        "",
    ],
)
def test_anything_else_is_a_bad_token_there_too(world: World, key: str) -> None:
    answer = world.refused("/api/x", headers=[("Authorization", f"Bearer {key}")])
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "token_invalid")


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/other", []),
        ("POST", "/read", []),
        ("GET", "/API/x", []),
        ("GET", "/api/../other", []),
        ("GET", "/other/../api/x", []),
        ("GET", "/api/%2e%2e/other", []),
        ("GET", "/apix", []),
        ("GET", "/api/x", [("X-HTTP-Method-Override", "DELETE")]),
        ("GET", "/api/x?_method=DELETE", []),
        ("GET", "/api/x", [("Authorization", f"Bearer {KEY}")]),
        ("GET", "/api/sessions", []),
    ],
)
def test_it_passes_nowhere_else(world: World, method: str, target: str, headers: list[tuple[str, str]]) -> None:
    # Only where every reading of the path allows it, and never with a method override or two credentials.
    assert world.refused(target, method=method, headers=[("Authorization", f"Bearer {KEY}"), *headers]).status == 401


def test_tokens_of_other_sources_are_removed_unjudged(world: World) -> None:
    good, over = token(someone()), token(someone())
    assert world.fetch("/sessions/logout", over, method="DELETE").status == 200
    for text in (good, over, "junk"):
        cookies = ("Cookie", f"a=1; access_token={text}; b=2")
        request = world.passed("/api/x", KEY, headers=[cookies, ("X-Api-Token", text), ("X_Api.Token", text)])
        assert text not in str(request)
        assert request.get_all("cookie") == ["a=1; b=2"]
    # Where no source looks, what is over is removed as ever.
    assert over not in str(world.passed("/api/x", KEY, headers=[("X-Access-Token", over), ("Cookie", f"o={over}")]))
    assert world.refused(f"/api/x?token={over}", KEY).status == 401


def test_a_jwt_is_judged_there_as_everywhere(world: World) -> None:
    user = someone()
    bearing = token(user)
    assert world.passed("/api/x", bearing).get_all("x-user-id") == [user]
    assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200
    assert world.refused("/api/x", bearing).status == 401
    assert world.refused("/api/x").status == 401


# ERROR_BODY


def test_an_error_on_a_forwarded_path_has_the_backends_shape(world: World) -> None:
    answer = world.refused("/other", headers=[("X-Request-Id", "r-1")])
    assert answer.get_all("content-type") == ["application/json; charset=utf-8"]
    assert json.loads(answer.body) == {
        "statusCode": 401,
        "message": "Authentication credentials were not provided",
        "error": {"code": "token_missing", "why": None},
        "list": ["r-1", 1],
        "text": "401 token_missing: ",
        "none": None,
        "token_missing": True,
        "braces": "{}{ code }{CODE}",
    }
    bearing = token(someone())
    assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200
    found = json.loads(world.refused("/other", headers=[bearer(bearing), ("Accept-Language", "fr")]).body)
    assert (found["error"], found["message"]) == (
        {"code": "access_token_blacklisted", "why": "logged_out"},
        "Le jeton d'accès a été révoqué",
    )


def test_own_paths_keep_the_shape_of_their_dialect(world: World) -> None:
    for target, member in (
        ("/api/sessions", "requestId"),
        ("/api/v1/users/me/sessions/", "error"),
        ("/sessions/me", "code"),
        ("/_gatekeeper/nothing", "code"),
    ):
        found = json.loads(world.refused(target).body)
        assert member in found
        assert "statusCode" not in found
