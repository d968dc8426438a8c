"""The pytest plugin and the page about the Python API, in separate projects, as users have them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each of them starts an interpreter.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
PLUGIN = 'pytest_plugins = ["gatekeeper_middleware.pytest_plugin"]\n'
CLIENT = """
import httpx
import pytest_asyncio

from app import create_app


@pytest_asyncio.fixture
async def client(gatekeeper_engine):
    app = create_app(engine=gatekeeper_engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
"""
APP = """
from fastapi import Depends, FastAPI

from gatekeeper_middleware import GatekeeperMiddleware
from gatekeeper_middleware.fastapi import User, current_admin, current_user


def create_app(**gate):
    app = FastAPI()
    app.add_middleware(GatekeeperMiddleware, **gate)

    @app.get("/api/v1/protected")
    async def protected_endpoint(current_user: User = Depends(current_user)):
        return {"message": f"Hello {current_user.username}!"}

    @app.get("/admin")
    async def admin(current_user: User = Depends(current_admin)):
        return current_user.roles

    @app.get("/hello")
    async def hello():
        return "hello"

    return app
"""
# The seed's, up to the last line; but that there the helpers come from somewhere, and here they are fixtures.
SEED_TEST = """
import pytest


@pytest.mark.asyncio
async def test_protected_endpoint_with_session_validation(
    client, create_test_user, create_test_session, create_access_token, get_session
):
    # Create user and session
    user = create_test_user()
    session = await create_test_session(user)

    # Create access token
    token = create_access_token(user, session.jti)

    # Test protected endpoint
    response = await client.get(
        "/api/v1/protected",
        headers={"Authorization": f"Bearer {token}"}
    )

    assert response.status_code == 200

    # Verify session activity was updated
    updated_session = await get_session(session.jti, user.id)
    assert updated_session.last_activity_at > session.last_activity_at
    assert response.json() == {"message": "Hello testuser!"}
"""
MORE_TESTS = """
from dataclasses import dataclass

import pytest

pytestmark = pytest.mark.asyncio
seen = []


@pytest.fixture
def gatekeeper_options():
    return {"PUBLIC_PATHS": "/hello", "ACCESS_TOKEN_TTL": "5m"}


@dataclass
class Account:
    id: int
    username: str = "carol"
    roles: tuple = ("admin",)


async def test_users_differ_and_have_roles(client, create_test_user, create_test_session, create_access_token):
    one, other = create_test_user(), create_test_user(username="bob", roles=["admin"])
    assert one.id != other.id and int(one.id) and other.is_admin and not one.is_admin
    for user, status in ((one, 403), (other, 200)):
        token = create_access_token(user, (await create_test_session(user)).jti)
        assert (await client.get("/admin", headers={"Authorization": f"Bearer {token}"})).status_code == status


async def test_any_user_will_do(client, create_test_session, create_access_token, get_session):
    user = Account(7)
    session = await create_test_session(user)
    headers = {"Authorization": f"Bearer {create_access_token(user, session.jti)}"}
    assert (await client.get("/api/v1/protected", headers=headers)).json() == {"message": "Hello carol!"}
    assert (await client.get("/admin", headers=headers)).json() == ["admin"]
    assert await get_session("another", user.id) is None


@pytest.mark.parametrize("number", [1, 2])
async def test_every_test_has_a_store_and_a_key_of_its_own(
    number, create_test_user, create_test_session, create_access_token, get_session, gatekeeper_environment
):
    user = create_test_user(id="the same")
    assert not seen or await get_session(seen[0], user.id) is None
    seen.append((await create_test_session(user)).jti)
    seen.append(gatekeeper_environment["GATEKEEPER_SIGNING_KEY"])
    assert len(set(seen)) == 2 * number


async def test_the_options_count_and_the_environment_does_not(client, gatekeeper_settings):
    assert (await client.get("/hello")).status_code == 200
    assert (await client.get("/api/v1/protected")).status_code == 401
    assert gatekeeper_settings.access_token_ttl == 300
    assert gatekeeper_settings.language == "en"


async def test_a_token_of_no_session_is_refused(client, create_test_user, create_access_token):
    headers = {"Authorization": f"Bearer {create_access_token(create_test_user(), 'nobody')}"}
    answer = await client.get("/api/v1/protected", headers=headers)
    assert answer.json()["code"] == "session_revoked_or_invalid"
"""


def run_project(folder: Path, files: dict[str, str], *options: str) -> dict[str, int]:
    """pytest in a project with these files; how many tests had which outcome."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    # Every warning is an error, but pytest-asyncio's own about a setting that it wants to be written out.
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    # Neither settings of this run nor plug-ins beside the one that is documented.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEKEEPER_", "PYTEST_"))}
    environment |= {"GATEKEEPER_LANGUAGE": "fr", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "middleware")])}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    run = subprocess.run(
        [*command, f"--basetemp={folder / 'tmp'}", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return {outcome: int(number) for number, outcome in re.findall(r"(\d+) (passed|failed|error|skipped)", run.stdout)}


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_unit_test_of_the_seed_runs_as_it_is_printed(tmp_path: Path, mode: str) -> None:  # C-16, C-37
    files = {"app.py": APP, "conftest.py": PLUGIN + CLIENT, "test_session_integration.py": SEED_TEST}
    assert run_project(tmp_path, files, "-o", f"asyncio_mode={mode}") == {"passed": 1}


def test_the_fixtures_keep_tests_apart_and_take_settings(tmp_path: Path) -> None:  # C-16
    files = {"app.py": APP, "conftest.py": PLUGIN + CLIENT, "test_more.py": MORE_TESTS}
    assert run_project(tmp_path, files) == {"passed": 6}


# The page


def examples() -> dict[str, str]:
    """The examples of the page that name a file."""
    blocks = re.findall(r"```python \w+\.py\n(# (\w+\.py)\n.*?)```", PAGE, re.DOTALL)
    return {name: code for code, name in blocks}


FLOW = """
import httpx
import pytest

from app import create_app


@pytest.fixture
def gatekeeper_options():
    return {"PUBLIC_PATHS": "POST /login,POST /refresh"}


@pytest.mark.asyncio
async def test_the_example_of_the_page(gatekeeper_engine):
    app = create_app(engine=gatekeeper_engine)
    from gatekeeper_middleware.faults import Fault, answer_fault

    app.add_exception_handler(Fault, answer_fault)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def login(username, password):
            return await client.post("/login", json={"username": username, "password": password})

        def bearer(tokens):
            return {"Authorization": f"Bearer {tokens['access_token']}"}

        assert (await login("bob", "wonderland")).status_code == 401
        bob, alice = (await login("bob", "builder")).json(), (await login("alice", "wonderland")).json()
        assert bob["expires_in"] == 900
        answer = (await client.get("/hello", headers=bearer(bob))).json()
        assert answer["message"] == "Hello bob!" and answer["since"].endswith("Z")
        assert (await client.get("/devices/2", headers=bearer(bob))).status_code == 403
        assert (await client.get("/devices/2", headers=bearer(alice))).json() == ["python-httpx"]
        assert (await client.get("/devices/%20", headers=bearer(alice))).json() == []
        newer = (await client.post("/refresh", json={"refresh_token": bob["refresh_token"]})).json()
        asked = {"access_token": bob["access_token"]}
        assert (await client.post("/logout", json=asked, headers=bearer(newer))).status_code == 200
        assert (await client.get("/hello", headers=bearer(newer))).json()["code"] == "access_token_blacklisted"
        over = await client.post("/refresh", json={"refresh_token": newer["refresh_token"]})
        assert (over.status_code, over.json()["code"], over.json()["reason"]) == (
            401, "refresh_token_invalid", "logged_out"
        )
"""


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:  # C-16, C-19, C-37
    files = examples()
    assert files.keys() == {"app.py", "conftest.py", "test_app.py"}
    assert run_project(tmp_path, files | {"test_flow.py": FLOW}) == {"passed": 2}


def test_the_settings_of_the_page_are_accepted(tmp_path: Path) -> None:
    (key := tmp_path / "signing-key").write_text("pR8mZ3xQ7vN2kT5wY9bL4cF6hJ1dS0gA\n")
    lines = dict(re.findall(r"^(GATEKEEPER_\w+)=(.*)$", PAGE, re.MULTILINE))
    assert lines["GATEKEEPER_SIGNING_KEY_FILE"] == "signing-key"
    code = "from app import create_app; from gatekeeper_middleware import GatekeeperMiddleware as G; G(create_app())"
    (tmp_path / "app.py").write_text(examples()["app.py"], encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")},
            **lines,
            "GATEKEEPER_SIGNING_KEY_FILE": str(key),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "middleware")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
