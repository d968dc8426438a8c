"""What settings say of tokens, through the whole gate: where they stand, how long they are, what they must claim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.middleware.host import mounted, sidecar_app
from tests.system.sidecar import Backend, Store, World, bearer, someone, token
from tests.tokens import forge

STREAM = ("Accept", "text/html, Text/Event-Stream;q=0.9")
OPTIONS: dict[str, Any] = {
    "rate_limit": "off",
    "device_limit": "off",
    "token_sources": "header,scheme:JWT,header:X-Access-Token,cookie:access_token,query:t",
    "jwt_types": "access",
    "jwt_required_claims": "scope=api",
    "jwt_issuer": "https://a.example,https://b.example",
    "jwt_audience": "web,app",
    "roles_claim": "realm.roles",
    "identity_headers": "X-User-Id=sub,X-User-Roles=roles,X-Org=claim:https://ex.com/app.org.id",
}


@pytest.fixture(scope="module", params=["middleware", "sidecar", "kept token"])
def world(store: Store, request: pytest.FixtureRequest) -> Iterator[World]:
    kept = {"forward_authorization": "false"} if request.param == "kept token" else {}
    with ExitStack() as stack:
        if request.param == "middleware":
            yield stack.enter_context(mounted(store, **OPTIONS))
        else:
            backend = stack.enter_context(Backend())
            yield stack.enter_context(sidecar_app(store, backend, **OPTIONS, **kept))


@pytest.fixture
def forwards(request: pytest.FixtureRequest) -> bool:
    return "kept token" not in request.node.name


def made(user: str, **claims: Any) -> str:
    return token(user, **({"scope": ["x", "api"], "iss": "https://b.example", "aud": ["app"]} | claims))


@pytest.mark.parametrize(
    "place",
    [
        ("Authorization", "Bearer {}"),
        ("Authorization", "JWT {}"),
        ("Authorization", "jwt {}"),
        ("X-Access-Token", "{}"),
        ("X-Access-Token", "Bearer {}"),
        ("Cookie", "access_token={}"),
        ("Cookie", 'access_token="Bearer {}"'),
        ("Cookie", "access_token=Bearer {}"),
        ("Cookie", "access_token=Bearer%20{}"),
    ],
)
def test_a_token_is_found_in_each_source_and_goes_on_from_there(
    world: World, place: tuple[str, str], *, forwards: bool
) -> None:
    user = someone()
    name, value = place[0], place[1].replace("{}", made(user))
    for _ in range(2):
        request = world.passed("/", headers=[(name, value)])
        assert request.get_all("x-user-id") == [user]
        assert request.get_all(name.lower()) == ([value] if forwards else [])


def test_the_error_says_which_scheme_is_expected(world: World) -> None:  # T23
    answer = world.refused("/", headers=[("Authorization", f"Token {made(someone())}")])
    found = json.loads(answer.body)
    assert (answer.status, found["code"]) == (401, "token_missing")
    assert found["detail"].endswith("(expected in Authorization: Bearer or JWT)")
    assert answer.get_all("www-authenticate") == ["Bearer"]
    french = world.refused("/", headers=[("Authorization", "Basic YTpi"), ("Accept-Language", "fr")])
    assert json.loads(french.body)["detail"].startswith("Les informations d'authentification")
    assert "expected" not in json.loads(world.refused("/").body)["detail"]


def test_a_token_in_the_query_of_an_event_stream(world: World, *, forwards: bool) -> None:
    user = someone()
    bearing = made(user)
    request = world.passed(f"/?a=%20&t={bearing}&b", headers=[STREAM, ("Authorization", "Basic YTpi")])
    assert (request.get_all("x-user-id"), request.target) == ([user], "/?a=%20&b")
    assert request.get_all("authorization") == ([f"Bearer {bearing}"] if forwards else ["Basic YTpi"])
    # Nowhere else: other requests can send a header.
    for method, headers in (
        ("GET", []),
        ("GET", [("Accept", "text/event-streams, */*")]),
        ("POST", [STREAM]),
    ):
        assert world.refused(f"/?t={bearing}", method=method, headers=headers).status == 401
    # Beside a bearer it must not be another user's, and it does not go on.
    assert world.refused(f"/?t={made(someone())}", headers=[STREAM, bearer(bearing)]).status == 401
    assert world.passed(f"/?t={made(user)}", headers=[STREAM, bearer(bearing)]).target == "/"


@pytest.mark.parametrize("size", [9_000, 40_000])
def test_a_token_may_be_as_long_as_the_headers(world: World, size: int) -> None:  # T21
    user = someone()
    for _ in range(2):
        assert world.passed("/", made(user, groups="x" * size)).get_all("x-user-id") == [user]
    assert world.refused("/", made(user, groups="x" * 60_000)).status in (401, 431)


@pytest.mark.parametrize(
    ("claims", "admitted"),
    [
        ({}, True),
        ({"scope": "api"}, True),
        ({"iss": "https://a.example", "aud": "web"}, True),
        ({"scope": "api read"}, False),
        ({"scope": ...}, False),
        ({"iss": "https://c.example"}, False),
        ({"aud": ["other"]}, False),
        ({"iss": ["https://a.example"]}, False),
        ({"type": "verify_email"}, False),
        ({"purpose": "reset-password"}, False),
    ],
)
def test_a_token_must_claim_what_the_settings_say(world: World, claims: dict[str, Any], *, admitted: bool) -> None:
    assert world.fetch("/", made(someone(), **claims)).status == (200 if admitted else 401)


@pytest.mark.parametrize(
    ("typ", "admitted"), [("access", True), ("application/Access", True), ("refresh", False), ("id+jwt", False)]
)
def test_a_header_type_may_be_configured(world: World, typ: str, *, admitted: bool) -> None:
    _, payload, _ = made(someone()).split(".")
    bearing = forge.hs({"alg": "HS256", "typ": typ}, forge.unb64(payload))
    assert world.fetch("/", bearing).status == (200 if admitted else 401)


def test_nested_claims_reach_the_application(world: World) -> None:
    claims = {"realm": {"roles": [{"name": "a"}, {"authority": "b"}]}, "https://ex.com/app": {"org": {"id": 7}}}
    request = world.passed("/", made(someone(), **claims))
    assert (request.get_all("x-user-roles"), request.get_all("x-org")) == (["a,b"], ["7"])
    assert world.passed("/", made(someone())).get_all("x-org") == []
