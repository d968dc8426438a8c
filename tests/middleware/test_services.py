"""The token service of the Python API, under the names of seed C (C-16)."""

from __future__ import annotations

import subprocess
import sys
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from gatekeeper.errors import ConfigError
from gatekeeper.settings import load
from gatekeeper.web.engine import Engine
from gatekeeper_middleware.faults import AuthenticationError
from gatekeeper_middleware.services import SessionService, TokenService, extract_jti_from_token
from tests.middleware.python_api import ISSUES, refused, running
from tests.system.sidecar import Store, environment, someone, token

USUAL = {"sub", "sid", "jti", "iat", "exp", "iss", "aud"}


# Tokens


async def test_an_access_and_a_refresh_token_made_in_one_request_are_one_session(
    tokens: TokenService, sessions: SessionService
) -> None:  # C-16
    user = someone()
    access = await tokens.create_access_token(user)
    refresh = await tokens.create_refresh_token(user)
    assert await sessions.get_session_count(user) == 1
    jti = extract_jti_from_token(access)
    assert extract_jti_from_token((await tokens.refresh_tokens(refresh))["access_token"]) == jti
    assert await sessions.is_session_valid(jti, user)


async def test_the_order_of_the_two_does_not_matter(tokens: TokenService, sessions: SessionService) -> None:
    user = someone()
    refresh = await tokens.create_refresh_token(user)
    access = await tokens.create_access_token(user)
    assert await sessions.get_session_count(user) == 1
    pair = await tokens.refresh_tokens(refresh)
    assert extract_jti_from_token(pair["access_token"]) == extract_jti_from_token(access)


async def test_another_pair_is_another_session_and_so_is_another_user(
    tokens: TokenService, sessions: SessionService
) -> None:
    one, other = someone(), someone()
    for _ in range(2):
        await tokens.create_access_token(one)
        await tokens.create_access_token(other)
        await tokens.create_refresh_token(one)
        await tokens.create_refresh_token(other)
    assert await sessions.get_session_count(one) == 2
    assert await sessions.get_session_count(other) == 2


@pytest.mark.parametrize("kind", ["object", "mapping", "integer", "string"])
async def test_a_user_is_whatever_has_an_id(tokens: TokenService, sessions: SessionService, kind: str) -> None:
    name = someone()
    users: dict[str, Any] = {
        "object": SimpleNamespace(id=int(name), roles=["admin", "user"]),
        "mapping": {"id": name, "roles": ("admin", "user")},
        "integer": int(name),
        "string": name,
    }
    payload = await tokens.validate_token(await tokens.create_access_token(users[kind]))
    assert payload["sub"] == name
    assert payload.get("roles") == (["admin", "user"] if kind in {"object", "mapping"} else None)
    assert await sessions.get_session_count(int(name)) == await sessions.get_session_count(name) == 1


async def test_a_user_may_have_a_uuid(tokens: TokenService, sessions: SessionService) -> None:
    user = SimpleNamespace(id=uuid.uuid4())
    assert (await tokens.validate_token(await tokens.create_access_token(user)))["sub"] == str(user.id)
    assert await sessions.get_session_count(user.id) == 1


@pytest.mark.parametrize("user", [None, "", " 7", True, 1.5, {"name": "x"}, SimpleNamespace(id=None), "a\nb"])
async def test_what_has_no_id_gets_no_token(tokens: TokenService, user: Any) -> None:
    with pytest.raises(ValueError, match="no user id"):
        await tokens.create_access_token(user)


async def test_further_claims_stay_through_refreshes(tokens: TokenService) -> None:
    user = {"id": someone(), "roles": "user editor"}
    access = await tokens.create_access_token(user, claims={"tenant": "acme", "sub": "1"})
    refresh = await tokens.create_refresh_token(user)
    for each in (access, (await tokens.refresh_tokens(refresh))["access_token"]):
        payload = await tokens.validate_token(each)
        assert {name: payload[name] for name in payload.keys() - USUAL} == {
            "tenant": "acme",
            "roles": ["user", "editor"],
        }
        assert payload["sub"] == user["id"]


async def test_roles_go_where_they_are_looked_for(store: Store) -> None:
    async with running(store, **ISSUES, roles_claim="realm_access.roles", admin_roles="root") as engine:
        access = await TokenService(engine).create_access_token({"id": someone(), "roles": ["root"]})
        claims = await engine.services.verifier.verify(access)
        assert (claims.roles, claims.is_admin) == (("root",), True)


async def test_a_token_can_be_made_for_a_session_that_is_there(
    tokens: TokenService, sessions: SessionService
) -> None:  # C-16
    user = someone()
    session = await sessions.create_session(user)
    access = await tokens.create_access_token(user, session.jti)
    assert extract_jti_from_token(access) == session.jti
    assert await sessions.get_session_count(user) == 1
    again = await sessions.get_session((await tokens.validate_token(access))["jti"], user)
    assert again is not None
    assert again.id == session.id
    assert again.last_activity_at > session.last_activity_at


async def test_a_token_is_not_made_for_a_session_that_is_over_or_not_there(
    tokens: TokenService, sessions: SessionService
) -> None:
    user, other = someone(), someone()
    session = await sessions.create_session(user)
    assert (await refused(tokens.create_access_token(user, "nobody"))).code == "session_revoked_or_invalid"
    assert (await refused(tokens.create_access_token(other, session.jti))).code == "session_revoked_or_invalid"
    await sessions.revoke_session(session.jti, user)
    error = await refused(tokens.create_access_token(user, session.jti))
    assert (error.code, error.reason) == ("access_token_blacklisted", "logged_out")


async def test_a_refresh_rotates_moves_the_activity_and_says_how_long_it_is_good(
    tokens: TokenService, sessions: SessionService
) -> None:  # C-16, C-02
    user = someone()
    jti = extract_jti_from_token(await tokens.create_access_token(user))
    before = await sessions.get_session(jti, user)
    pair = await tokens.refresh_tokens(first := await tokens.create_refresh_token(user))
    after = await sessions.get_session(jti, user)
    assert before is not None
    assert after is not None
    assert after.last_activity_at > before.last_activity_at
    assert after.expires_at == before.expires_at
    assert pair.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (pair["token_type"], pair["expires_in"], pair["refresh_token"] != first) == ("bearer", 900, True)
    assert tokens.expires_in == 900


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Refresh token is invalid or expired"),
        ("fr-CA", "Le jeton de rafraîchissement est invalide ou a expiré"),
        ("de", "Refresh token is invalid or expired"),
    ],
)
async def test_errors_are_in_the_language_that_is_asked_for(tokens: TokenService, language: str, text: str) -> None:
    error = await refused(tokens.refresh_tokens("no such token", language))  # C-16, C-39
    assert (str(error), error.code, error.reason, error.status_code) == (text, "refresh_token_invalid", None, 401)


async def test_who_has_no_room_is_told_so(store: Store) -> None:  # C-21
    async with running(store, **ISSUES, device_limit="1", device_limit_policy="reject") as engine:
        user = someone()
        await TokenService(engine).create_access_token(user)
        error = await refused(TokenService(engine).create_access_token(user))
        assert (error.code, error.status_code) == ("session_limit_exceeded", 403)
        assert str(error) == "Maximum number of concurrent sessions exceeded"


async def test_where_the_application_issues_the_tokens_the_services_make_none(observing: Engine) -> None:
    tokens = TokenService(observing)
    calls = [
        tokens.create_access_token("1"),
        tokens.create_refresh_token("1"),
        tokens.refresh_tokens("x"),
        tokens.session_service.create_session("1"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="GATEKEEPER_TOKENS is observe"):
            await call
    with pytest.raises(RuntimeError):
        _ = tokens.expires_in


# Validation


async def test_a_token_is_valid_as_long_as_its_session_lives(tokens: TokenService, sessions: SessionService) -> None:
    # C-11, C-16
    user = someone()
    access = await tokens.create_access_token(user)
    jti = extract_jti_from_token(access)
    before = await sessions.get_session(jti, user)
    payload = await tokens.validate_token(access)
    after = await sessions.get_session(jti, user)
    assert (payload["sub"], payload["sid"]) == (user, jti)
    assert before is not None
    assert after is not None
    assert after.last_activity_at > before.last_activity_at
    await sessions.revoke_session(jti, user)
    error = await refused(tokens.validate_token(access))
    assert (error.code, error.reason, str(error)) == (
        "access_token_blacklisted",
        "logged_out",
        "Access token has been revoked",
    )
    assert error.headers is not None
    assert "invalid_token" in error.headers["www-authenticate"]


@pytest.mark.parametrize("bad", ["", "x", "a.b.c", "é"])
async def test_what_is_no_token_is_not_valid(tokens: TokenService, bad: str) -> None:
    assert (await refused(tokens.validate_token(bad, "fr"))).code == "token_invalid"
    with pytest.raises(AuthenticationError):
        extract_jti_from_token(bad)


async def test_a_token_that_has_expired_says_so(tokens: TokenService) -> None:
    assert (await refused(tokens.validate_token(token(someone(), exp=1)))).code == "token_expired"


async def test_a_good_token_without_a_session_opens_one_only_where_tokens_are_adopted(
    tokens: TokenService, observing: Engine
) -> None:
    user = someone()
    assert (await refused(tokens.validate_token(token(user)))).code == "session_revoked_or_invalid"
    payload = await TokenService(observing).validate_token(token(user))
    assert payload["sub"] == user
    assert await SessionService(observing).get_session_count(user) == 1


async def test_the_name_of_a_session_is_that_of_the_gate() -> None:  # C-16
    user = someone()
    assert extract_jti_from_token(token(user, jti="one")) == "one"
    assert extract_jti_from_token(token(user, jti="one", sid="two")) == "two"
    assert extract_jti_from_token(token(user, jti="one", sid="two", auth_time=1_700_000_000)) == "two:1700000000"
    assert extract_jti_from_token(token(user, jti=...)).startswith("h:")
    forged = token(user, jti="one").rpartition(".")[0] + ".AAAA"
    assert extract_jti_from_token(forged) == "one", "unverified, as its docstring says"


# Set-up


def test_who_checks_passwords_need_not_be_named_where_nobody_logs_in_here() -> None:
    settings = load(environment(**ISSUES))
    assert (settings.login_check_url, settings.login_paths) == (None, ())
    with pytest.raises(ConfigError, match="GATEKEEPER_LOGIN_CHECK_URL: not set"):
        load(environment(tokens="issue"))


def test_the_services_need_no_fastapi_and_nothing_needs_a_server() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; import gatekeeper_middleware.services; del sys.modules['fastapi']; "
        "import gatekeeper_middleware.fastapi, gatekeeper_middleware.pytest_plugin; "
        "unwanted = ('uvicorn', 'uvloop', 'gatekeeper.forward', 'gatekeeper.serve', 'gatekeeper.app'); "
        "print([name for name in unwanted if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_an_error_of_the_applications_own_reads_like_any_other() -> None:
    error = AuthenticationError("No", code="token_expired")
    assert (str(error), error.status_code, error.headers) == ("No", 401, {"www-authenticate": "Bearer"})
    assert str(AuthenticationError()) == "Invalid authentication token"
