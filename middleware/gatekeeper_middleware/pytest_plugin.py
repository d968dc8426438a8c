"""Fixtures for tests of an application behind `GatekeeperMiddleware`. Each test has a real store of its own.

    pytest_plugins = ["gatekeeper_middleware.pytest_plugin"]

in the topmost `conftest.py`. Needs pytest-asyncio, and the extra `embedded` for the store.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import pytest
import pytest_asyncio

from gatekeeper.build import build
from gatekeeper.settings import Settings, load
from gatekeeper.web.engine import Engine
from gatekeeper_middleware.context import user_id
from gatekeeper_middleware.schemas import SessionInfo, User
from gatekeeper_middleware.services import SessionService, claims_of, issuing_of

_DAY_SECONDS = 86_400
_ids = itertools.count(1)


class CreateUser(Protocol):
    def __call__(self, *, id: int | str | None = None, username: str = "testuser", roles: Sequence[str] = ()) -> User:  # noqa: A002
        """Return a user with `id`, or with an id that no other test uses."""
        ...


class CreateAccessToken(Protocol):
    def __call__(self, user: Any, jti: str, *, claims: Mapping[str, Any] | None = None) -> str:
        """Return an access token of the session that `jti` names."""
        ...


@pytest.fixture
def gatekeeper_options() -> Mapping[str, str]:
    """The settings of a test, without the prefix `GATEKEEPER_`. Override it: `{"PUBLIC_PATHS": "POST /login"}`."""
    return {}


@pytest.fixture
def gatekeeper_environment(
    tmp_path_factory: pytest.TempPathFactory, gatekeeper_options: Mapping[str, str]
) -> dict[str, str]:
    """The environment that the settings are read from. Gatekeeper issues tokens, with a key of this test, and the
    application has the login endpoints."""
    defaults = {
        "TOKENS": "issue",
        "SIGNING_KEY": secrets.token_urlsafe(48),
        "LOGIN_PATHS": "none",
        "REFRESH_PATHS": "none",
        "LOGOUT_PATHS": "none",
        # A short path, since it holds a Unix socket (108 bytes at most, unix(7)).
        "DATA_DIR": str(tmp_path_factory.mktemp("gk")),
    }
    return {f"GATEKEEPER_{name}": value for name, value in {**defaults, **gatekeeper_options}.items()}


@pytest.fixture
def gatekeeper_settings(gatekeeper_environment: Mapping[str, str]) -> Settings:
    """The settings of the test; the environment of the process is ignored."""
    return load(gatekeeper_environment)


@pytest_asyncio.fixture
async def gatekeeper_engine(gatekeeper_settings: Settings) -> AsyncIterator[Engine]:
    """A running engine, for `GatekeeperMiddleware(app, engine=gatekeeper_engine)`. It and its store are closed after
    the test."""
    engine = build(gatekeeper_settings, mode="middleware")
    try:
        await engine.runtime.start()
        yield engine
    finally:
        await engine.runtime.aclose()


@pytest.fixture
def create_test_user() -> CreateUser:
    """`create_test_user()` returns a user."""

    def create(*, id: int | str | None = None, username: str = "testuser", roles: Sequence[str] = ()) -> User:  # noqa: A002
        name = user_id(next(_ids) if id is None else id)
        claims = {"preferred_username": username}
        return User(id=name, roles=tuple(roles), is_admin="admin" in roles, claims=claims)

    return create


@pytest.fixture
def create_test_session(gatekeeper_engine: Engine) -> Callable[[Any], Awaitable[SessionInfo]]:
    """`await create_test_session(user)` opens a session of a user, as a login does."""

    async def create(user: Any) -> SessionInfo:
        return await SessionService(gatekeeper_engine).create_session(user, claims=_name_claim(user))

    return create


@pytest.fixture
def create_access_token(gatekeeper_engine: Engine) -> CreateAccessToken:
    """`create_access_token(user, session.jti)` returns an access token."""

    def create(user: Any, jti: str, *, claims: Mapping[str, Any] | None = None) -> str:
        issuing = issuing_of(gatekeeper_engine.services)
        every = claims_of(gatekeeper_engine.services, user, {**_name_claim(user), **(claims or {})})
        return issuing.sign(user_id(user), sid=jti, claims=every, session_expires_at=time.time() + _DAY_SECONDS).token

    return create


@pytest.fixture
def get_session(gatekeeper_engine: Engine) -> Callable[[str, int | str], Awaitable[SessionInfo | None]]:
    """`await get_session(jti, user.id)` reads a session from the store."""
    return SessionService(gatekeeper_engine).get_session


def _name_claim(user: Any) -> dict[str, str]:
    name = getattr(user, "username", None)
    return {"preferred_username": name} if isinstance(name, str) else {}
