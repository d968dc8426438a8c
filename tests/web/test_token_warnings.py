"""Silence is over: what Gatekeeper cannot use is one warning a kind, with names and never a value (rule 5.15)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, someone, token
from tests.tokens import forge
from tests.web.test_observed_sign_in import LOGIN, LOGOUT, REFRESH, Pair, handed, mount, of, opaque, post, sign_in

LOGGER = "gatekeeper.tokens.token_warnings"


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    """A new one for each test: a kind is logged once for each process."""
    with mounted(store, mount, login_rate_limit="off") as made:
        yield made


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, LOGGER)
    return caplog


def lines(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in told.records if record.name == LOGGER]


def test_the_first_token_of_a_kind_that_is_refused_is_a_warning(world: World, told: pytest.LogCaptureFixture) -> None:
    user = someone()
    for _ in range(3):
        for bad in (
            forge.token(forge.OTHER_SECRET, sub=user, secret_of_mine="hunter2"),
            token(user, sub=..., user_id=user),
            token(user, exp=1),
            token(user, **{"evil\nname": 1, opaque(): 2}, sub=..., user_id=user),
        ):
            assert world.refused("/", bad).status == 401
    assert lines(told) == [
        (
            "client token refused: no key verifies the signature; its claims: sub, jti, iat, exp, secret_of_mine; "
            "see GATEKEEPER_JWT_SECRET, GATEKEEPER_JWT_PUBLIC_KEY or GATEKEEPER_JWKS_URL (logged once)"
        ),
        (
            "client token refused: the user is missing: no claim sub; its claims: jti, iat, exp, user_id; "
            "see GATEKEEPER_JWT_USER_CLAIM (logged once)"
        ),
    ]


def test_a_login_that_opened_no_session_is_a_warning(world: World, told: pytest.LogCaptureFixture) -> None:
    user, secret = someone(), opaque()
    bad = forge.token(forge.OTHER_SECRET, sub=user)
    for _ in range(2):
        post(world, LOGIN, JSONResponse({"result": {"jwt": bad}, "n": secret}))
        post(world, LOGIN, JSONResponse({"token": token(user, sub=..., uid=user)}))
        post(world, LOGIN, Response(headers={"set-cookie": f"sid={token(user, iat=1)}; HttpOnly"}))
        post(world, LOGIN, JSONResponse({"ticket": secret, "user": {"name": secret}, secret: "1"}))
        post(world, LOGIN, PlainTextResponse("<html>" + secret))
    settings = "GATEKEEPER_JWT_SECRET, GATEKEEPER_JWT_PUBLIC_KEY or GATEKEEPER_JWKS_URL"
    found = lines(told)
    assert found[0].startswith(
        "backend login opened no session: result.jwt: no key verifies the signature; its claims: sub"
    )
    assert found[0].endswith(f"see {settings}; members of the response: result.jwt, n (logged once)")
    assert found[1].startswith(
        "backend login opened no session: token: the user is missing: no claim sub; its claims: jti"
    )
    assert found[2].startswith("backend login opened no session: cookie sid: iat is before the request")
    assert found[3:] == [
        (
            "backend login opened no session: no token found among the members ticket, user.name, ?; "
            "see GATEKEEPER_LOGIN_TOKEN_POINTERS (logged once)"
        ),
        (
            "backend login opened no session: no token found among the members none; "
            "see GATEKEEPER_LOGIN_TOKEN_POINTERS (logged once)"
        ),
    ]
    assert secret not in str(found)
    assert user not in str(found)
    assert not re.search("eyJ", str(found))


def test_what_goes_well_and_what_holds_no_tokens_is_no_warning(world: World, told: pytest.LogCaptureFixture) -> None:
    user = someone()
    pair = sign_in(world, user)
    post(world, REFRESH, handed(Pair(token(user), opaque())), of(refresh_token=pair.refresh))
    # Beside a good token, others are other things: an ID token, say.
    post(world, LOGIN, JSONResponse({"token": token(user), "id_token": forge.token(forge.OTHER_SECRET)}))
    post(world, LOGIN, JSONResponse({"error": "wrong password"}, status_code=401))
    post(world, LOGIN, Response(status_code=302, headers={"location": "/mfa"}))
    post(world, REFRESH, JSONResponse({"ok": True}))
    post(world, LOGOUT, JSONResponse({"ok": True}))
    assert lines(told) == []


def test_names_that_change_do_not_fill_the_log(world: World, told: pytest.LogCaptureFixture) -> None:
    for number in range(100):
        post(world, LOGIN, JSONResponse({"abcdefghijklmnopqrstuvwxyz"[number % 26] * (1 + number // 26): "x"}))
    assert len(lines(told)) == 64
