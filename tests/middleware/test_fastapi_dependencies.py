"""FastAPI dependencies: their meanings, and their names in seed C (C-15, C-18)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import fastapi
import httpx
import pytest
from fastapi import Depends
from starlette.responses import JSONResponse

from gatekeeper.models import EndReason
from gatekeeper.web.engine import Engine
from gatekeeper_middleware import GatekeeperMiddleware
from gatekeeper_middleware.fastapi import (
    User,
    current_active_user,
    current_admin,
    current_user,
    get_current_active_user,
    get_current_admin_user,
    get_current_user,
    get_redis_client,
    get_session_service,
    get_token_service,
    oauth2_scheme,
    session_service,
    token_service,
    use_users,
)
from gatekeeper_middleware.faults import AuthenticationError, Fault, answer_fault
from gatekeeper_middleware.services import (
    SessionService,
    TokenService,
    extract_jti_from_request,
)
from tests.contracts.responses import RETRY_SOON
from tests.middleware.python_api import ISSUES, bearing, client_of, detail, running
from tests.system.sidecar import Store, someone, token


def bare_app(**gate: Any) -> fastapi.FastAPI:
    """Without users of its own."""
    app = fastapi.FastAPI()
    app.add_middleware(GatekeeperMiddleware, **gate)

    @app.get("/me")
    async def me(user: Annotated[User, Depends(current_user)]) -> dict[str, Any]:
        return {"id": user.id, "roles": user.roles, "admin": user.is_admin, "name": user.username}

    @app.get("/user")
    async def user(user: Annotated[User, Depends(current_active_user)]) -> User:
        return user

    @app.get("/admin")
    async def admin(user: Annotated[Any, Depends(current_admin)]) -> str:
        return str(user.id)

    @app.get("/token")
    async def shown(token: Annotated[str, Depends(oauth2_scheme)]) -> str:
        return token

    @app.get("/jti")
    async def jti(request: fastapi.Request) -> str:
        return extract_jti_from_request(request)

    @app.get("/same")
    async def same(
        one: Annotated[TokenService, Depends(token_service)],
        other: Annotated[TokenService, Depends(get_token_service)],
        sessions: Annotated[SessionService, Depends(session_service)],
    ) -> bool:
        return one is other and one.session_service is sessions

    @app.get("/kept")
    async def kept(
        redis: Annotated[Any, Depends(get_redis_client)], user: Annotated[User, Depends(current_user)]
    ) -> int:
        return int(await redis.exists(f"gk:{{{user.id}}}:sessions"))

    @app.post("/open")
    async def opened(tokens: Annotated[TokenService, Depends(token_service)], user: str) -> str:
        return await tokens.create_access_token(user)

    return app


@asynccontextmanager
async def application(
    store: Store, **settings: str
) -> AsyncIterator[tuple[fastapi.FastAPI, httpx.AsyncClient, Engine]]:
    async with running(store, **settings) as engine:
        app = bare_app(engine=engine)
        async with client_of(app) as client:
            yield app, client, engine


async def test_without_users_of_its_own_the_token_says_who_it_is(store: Store) -> None:  # C-15
    name = someone()
    async with application(store) as (_, client, _engine):
        mine = bearing(token(name, roles=["editor"], preferred_username="bob"))
        answer = await client.get("/me", headers=mine)
        assert answer.json() == {"id": name, "roles": ["editor"], "admin": False, "name": "bob"}
        shown = (await client.get("/user", headers=mine)).json()
        assert (shown["id"], shown["is_active"], shown["claims"]["preferred_username"]) == (name, True, "bob")
        plain = await client.get("/me", headers=bearing(token(name)))
        assert plain.json() == {"id": name, "roles": [], "admin": False, "name": name}


async def test_administrators_are_those_of_the_roles_unless_the_user_says_otherwise(store: Store) -> None:  # C-15
    name = someone()
    admin, user = bearing(token(name, roles=["admin"])), bearing(token(name))
    async with application(store) as (app, client, _):
        assert (await client.get("/admin", headers=admin)).json() == name
        refused = await client.get("/admin", headers=user)
        assert (refused.status_code, refused.json()) == (403, {"detail": "Administrator rights are required"})
        assert "www-authenticate" not in refused.headers

        class Told:
            id, is_admin = name, False

        async def load(_: str) -> Any:
            return Told

        use_users(app, load)
        assert (await client.get("/admin", headers=admin)).status_code == 403
        Told.is_admin = True
        assert (await client.get("/admin", headers=user)).status_code == 200


async def test_an_inactive_user_who_came_that_far_is_400(store: Store) -> None:  # C-15
    async with application(store) as (app, client, _):
        mine = bearing(token(someone()))
        app.dependency_overrides[get_current_user] = lambda: User(id="1", is_active=False)
        answer = await client.get("/user", headers=mine)
        assert (answer.status_code, answer.json()) == (400, {"detail": "Inactive user"})
        french = await client.get("/admin", headers={**mine, "accept-language": "fr"})
        assert (french.status_code, detail(french)) == (400, "Utilisateur inactif")


async def test_an_authentication_error_while_loading_is_401_with_its_text(store: Store) -> None:  # C-15
    async with application(store) as (app, client, _):

        async def load(user_id: str) -> Any:
            raise AuthenticationError(f"{user_id} is on holiday", status_code=403)

        use_users(app, load)
        name = someone()
        answer = await client.get("/me", headers=bearing(token(name)))
        assert (answer.status_code, answer.json()) == (401, {"detail": f"{name} is on holiday"})
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_on_a_public_path_nobody_may_be_there(store: Store) -> None:
    async with application(store, public_paths="/me,/token,/jti") as (_, client, _engine):
        for path in ("/me", "/token", "/jti"):
            for headers in ({}, bearing("x"), bearing(token(someone(), exp=1))):
                answer = await client.get(path, headers=headers)
                assert (answer.status_code, detail(answer)) == (401, "Authentication credentials were not provided")
                assert answer.headers["www-authenticate"] == "Bearer"
        mine = token(someone(), sid="the-sid")
        assert (await client.get("/token", headers=bearing(mine))).json() == mine
        assert (await client.get("/jti", headers=bearing(mine))).json() == "the-sid"
        assert (await client.get("/me", headers=bearing(mine))).status_code == 200


async def test_the_user_is_known_where_the_token_is_kept_from_the_application(store: Store) -> None:
    async with application(store, forward_authorization="false") as (_, client, _engine):
        mine = bearing(token(someone()))
        assert (await client.get("/me", headers=mine)).status_code == 200
        assert (await client.get("/token", headers=mine)).status_code == 401


async def test_a_token_is_found_where_the_gate_found_it(store: Store) -> None:  # C-18
    async with application(store, token_sources="cookie:session,header") as (_, client, _engine):
        mine = token(someone())
        assert (await client.get("/token", headers={"cookie": f"session={mine}"})).json() == mine


async def test_the_dependencies_of_one_request_are_one(store: Store) -> None:  # C-18
    async with application(store) as (_, client, _engine):
        mine = bearing(token(someone()))
        assert (await client.get("/same", headers=mine)).json() is True
        assert (await client.get("/kept", headers=mine)).json() == 1


def test_every_dependency_has_the_name_of_the_seed_too() -> None:  # C-18
    assert get_current_user is current_user
    assert get_current_active_user is current_active_user
    assert get_current_admin_user is current_admin
    assert get_session_service is session_service


async def test_without_a_gate_in_front_nothing_is_believed(store: Store) -> None:
    async with running(store) as engine:
        app = bare_app(engine=engine)
        app.user_middleware.clear()
        async with client_of(app) as client:
            for path in ("/me", "/token", "/jti", "/same"):
                with pytest.raises(RuntimeError, match="does not stand in front"):
                    await client.get(path)


async def test_the_documentation_of_the_application_says_that_a_token_is_needed(store: Store) -> None:
    async with running(store) as engine:
        described = bare_app(engine=engine).openapi()
    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    for path in ("/me", "/user", "/admin", "/token"):
        assert described["paths"][path]["get"]["security"] == [{"Gatekeeper": []}]
    assert "security" not in described["paths"]["/same"]["get"]


# Faults


async def test_what_nobody_catches_is_answered_rightly(store: Store) -> None:
    settings = ISSUES | {"device_limit": "1", "device_limit_policy": "reject", "public_paths": "POST /open"}
    async with application(store, **settings) as (app, client, _):
        user = someone()
        opened = [await client.post("/open", params={"user": user}) for _ in range(2)]
        assert [answer.status_code for answer in opened] == [200, 403]
        assert opened[1].json() == {"detail": "Maximum number of concurrent sessions exceeded"}
        app.add_exception_handler(Fault, answer_fault)
        app.middleware_stack = None
        full = await client.post("/open", params={"user": user}, headers={"accept-language": "fr"})
        assert full.json() == {
            "detail": "Le nombre maximal de sessions simultanées est dépassé",
            "code": "session_limit_exceeded",
        }


async def test_a_store_that_is_away_is_503(store: Store) -> None:
    settings = ISSUES | {"public_paths": "POST /open", "redis_url": "unix:///nowhere/store.sock"}
    async with application(store, **settings) as (_, client, _engine):
        answer = await client.post("/open", params={"user": "1"})
        assert (answer.status_code, detail(answer)) == (503, "Session store is unavailable, try again")
        assert answer.headers["retry-after"] in RETRY_SOON


async def test_the_full_answer_is_that_of_the_gate() -> None:
    error = AuthenticationError(
        "Access token has been revoked", code="access_token_blacklisted", reason=EndReason.LOGGED_OUT
    )
    answer = await answer_fault(fastapi.Request({"type": "http"}), error)
    assert isinstance(answer, JSONResponse)
    assert json.loads(bytes(answer.body)) == {
        "detail": "Access token has been revoked",
        "code": "access_token_blacklisted",
        "reason": "logged_out",
    }
    assert answer.headers["cache-control"] == "no-store"
    with pytest.raises(KeyError):
        await answer_fault(fastapi.Request({"type": "http"}), KeyError())
