"""The endpoints of seed C over the FastAPI dependencies, as it prints them (C-05, C-11, C-15, C-19)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from gatekeeper_middleware.services import extract_jti_from_token
from tests.middleware import seed_endpoints
from tests.middleware.python_api import bearing, client_of, detail, running
from tests.middleware.seed_endpoints import SETTINGS, USERS, seed_app
from tests.system.sidecar import Store, someone


@pytest.fixture
def alice() -> Iterator[seed_endpoints.User]:
    user = seed_endpoints.User(int(someone()), "alice", "wonderland")
    admin = seed_endpoints.User(int(someone()), "admin", "letmein", roles=("admin",))
    USERS.update({user.id: user, admin.id: admin})
    yield user
    USERS.clear()


@pytest.fixture
async def client(store: Store, alice: seed_endpoints.User) -> AsyncIterator[httpx.AsyncClient]:
    async with running(store, **SETTINGS) as engine, client_of(seed_app(engine=engine)) as client:
        yield client


async def signed_in(client: httpx.AsyncClient, username: str = "alice", password: str = "wonderland") -> dict[str, Any]:
    answer = await client.post("/auth/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


async def test_the_flow_of_the_seed(client: httpx.AsyncClient) -> None:  # C-19, C-16
    tokens = await signed_in(client)
    assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    mine = bearing(tokens["access_token"])
    protected = await client.get("/api/v1/protected", headers=mine)
    assert (protected.status_code, protected.json()) == (200, {"message": "Hello alice!"})
    refreshed = await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 200
    newer = refreshed.json()
    # The access token of before the refresh logs out too.
    answer = await client.post("/auth/logout", json={"access_token": tokens["access_token"]}, headers=mine)
    assert (answer.status_code, answer.json()) == (200, {"message": "Logged out successfully"})
    for each in (tokens, newer):
        over = await client.get("/api/v1/protected", headers=bearing(each["access_token"]))
        assert (over.status_code, over.json()["code"]) == (401, "access_token_blacklisted")
    again = await client.post("/auth/refresh", json={"refresh_token": newer["refresh_token"], "language": "fr"})
    assert (again.status_code, detail(again)) == (401, "Le jeton de rafraîchissement est invalide ou a expiré")


async def test_a_wrong_password_is_the_applications_to_refuse(client: httpx.AsyncClient) -> None:
    answer = await client.post("/auth/login", json={"username": "alice", "password": "x"})
    assert (answer.status_code, answer.json()) == (401, {"detail": "Incorrect username or password"})


async def test_a_session_knows_the_device_that_signed_in(client: httpx.AsyncClient, alice: seed_endpoints.User) -> None:
    mine = bearing((await signed_in(client))["access_token"])
    (row,) = (await client.get("/api/users/me/sessions", headers=mine)).json()
    assert (row["device_name"], row["ip_address"]) == ("Chrome on Windows", "203.0.113.9")


async def test_a_login_that_brings_a_token_replaces_its_session(
    client: httpx.AsyncClient, alice: seed_endpoints.User
) -> None:
    first = (await signed_in(client))["access_token"]
    credentials = {"username": "alice", "password": "wonderland"}
    second = (await client.post("/auth/login", json=credentials, headers=bearing(first))).json()["access_token"]
    assert (await client.get("/api/v1/protected", headers=bearing(first))).status_code == 401
    info = (await client.get("/debug/session-info", headers=bearing(second))).json()
    assert info["active_sessions"] == 1


async def test_data_with_activity_moved_by_hand(client: httpx.AsyncClient, alice: seed_endpoints.User) -> None:  # C-05
    mine = bearing((await signed_in(client))["access_token"])
    for number in range(2):
        answer = await client.post("/api/v1/data", json={"value": str(number)}, headers=mine)
        assert (answer.status_code, answer.json()) == (200, {"value": str(number), "by": alice.id})
    assert (await client.post("/api/v1/data", json={"value": "x"})).status_code == 401


async def test_what_administrators_and_developers_look_at(
    client: httpx.AsyncClient, alice: seed_endpoints.User
) -> None:  # C-19, C-15
    tokens = await signed_in(client, "admin", "letmein")
    admin, jti = bearing(tokens["access_token"]), extract_jti_from_token(tokens["access_token"])
    shown = (await client.get("/admin/sessions/active", headers=admin)).json()
    assert shown["active_sessions"] == 1
    (row,) = shown["sessions"]
    assert row.keys() == {"jti", "created_at", "last_activity", "expires_at"}
    assert row["jti"] == jti
    assert row["created_at"] <= row["last_activity"] < row["expires_at"]
    assert (await client.post("/admin/sessions/cleanup", headers=admin)).json().keys() == {"cleaned_sessions"}
    mine = bearing((await signed_in(client))["access_token"])
    for method, path in (("GET", "/admin/sessions/active"), ("POST", "/admin/sessions/cleanup")):
        answer = await client.request(method, path, headers=mine)
        assert (answer.status_code, detail(answer)) == (403, "Administrator rights are required")
    info = (await client.get("/debug/session-info", headers=admin)).json()
    assert info.pop("user_id") in USERS
    assert info == {"jti": jti, "session_valid": True, "active_sessions": 1}


async def test_before_and_after_are_the_same(client: httpx.AsyncClient) -> None:  # C-19
    mine = bearing(one := (await signed_in(client))["access_token"])
    other = (await signed_in(client))["access_token"]
    for path in ("/before", "/after"):
        answer = await client.get(path, params={"jti": extract_jti_from_token(other)}, headers=mine)
        assert (answer.status_code, answer.json()) == (200, {"data": "some data"})
    await client.post("/auth/logout", json={"access_token": other}, headers=bearing(one))
    for path in ("/before", "/after"):
        for name in (extract_jti_from_token(other), "another"):
            answer = await client.get(path, params={"jti": name}, headers=mine)
            assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid session"})
    assert (await client.get("/api/v1/data", headers=mine)).json() == {"data": "some data"}


async def test_nobody_signs_out_another_user(client: httpx.AsyncClient, alice: seed_endpoints.User) -> None:
    hers = (await signed_in(client))["access_token"]
    admin = (await signed_in(client, "admin", "letmein"))["access_token"]
    # `extract_jti_from_token` verifies nothing, and that does not matter here.
    await client.post("/auth/logout", json={"access_token": admin}, headers=bearing(hers))
    assert (await client.get("/api/v1/protected", headers=bearing(admin))).status_code == 200
    answer = await client.post("/auth/logout", json={"access_token": "x"}, headers=bearing(hers))
    assert (answer.status_code, detail(answer)) == (401, "Invalid authentication token")


# The user of a request


@pytest.mark.parametrize("path", ["/api/v1/protected", "/own", "/active"])
async def test_who_is_unknown_or_inactive_is_refused(
    client: httpx.AsyncClient, alice: seed_endpoints.User, path: str
) -> None:  # C-11, C-15
    mine = bearing((await signed_in(client))["access_token"])
    assert (await client.get(path, headers=mine)).json() == {"message": "Hello alice!"}
    alice.is_active = False
    answer = await client.get(path, headers=mine)
    assert (answer.status_code, answer.json()) == (401, {"detail": "User is invalid or inactive"})
    del USERS[alice.id]
    answer = await client.get(path, headers=mine)
    assert (answer.status_code, answer.json()) == (401, {"detail": "User is invalid or inactive"})
    if path != "/own":
        assert "invalid_token" in answer.headers["www-authenticate"]
        answer = await client.get(path, headers={**mine, "accept-language": "fr"})
        assert detail(answer) == "L'utilisateur n'est pas valide ou est inactif"


async def test_the_seeds_own_dependency_works_as_printed(
    client: httpx.AsyncClient, alice: seed_endpoints.User
) -> None:  # C-15, C-18
    # `oauth2_scheme` and `validate_token`, in the application's own code.
    tokens = await signed_in(client)
    assert (await client.get("/own", headers=bearing(tokens["access_token"]))).json() == {"message": "Hello alice!"}
    assert (await client.get("/own", headers={"cookie": f"access_token={tokens['access_token']}"})).status_code == 200
