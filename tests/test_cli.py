"""The commands, as they are typed: what they print, and their exit codes."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from gatekeeper import __version__
from tests.middleware.host import mounted, starlette_app
from tests.servers import serve_asgi
from tests.system.sidecar import Store, World, command, external_store, someone, token
from tests.tokens import forge
from tests.upstream.http2_backend import hypercorn


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store) as made:
        yield made


def test_version_and_help() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"gatekeeper {__version__}\n")
    help_text = command("--help").stdout
    for name in ("serve", "demo", "check", "config", "token", "sessions"):
        assert name in help_text


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["serve", "--nonsense"], ["token"], ["sessions", "revoke"], ["token", "--sub", "1", "--ttl", "0"]],
)
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["serve", "check", "config", "sessions list 1", "token --sub 1"])
def test_wrong_settings_are_exit_code_2_for_every_command(name: str) -> None:
    done = command(*name.split(), jwt_secret="short-and-secret", device_limit="many")
    assert done.returncode == 2
    # Commands that only talk to the store read no key.
    assert ("GATEKEEPER_JWT_SECRET" in done.stderr) == (not name.startswith("sessions"))
    assert "GATEKEEPER_DEVICE_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr
    assert "short-and-secret" not in done.stdout + done.stderr


# config


def test_config_tells_every_setting_with_its_source_and_no_secret(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("redis://user:hunter2@store.example:6379/0\n")
    done = command("config", device_limit="5", redis_url_file=str(secret))
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.fullmatch(r"GATEKEEPER_DEVICE_LIMIT +5  \(environment\)", rows["GATEKEEPER_DEVICE_LIMIT"])
    assert re.fullmatch(r"GATEKEEPER_SESSION_TTL +24h  \(default\)", rows["GATEKEEPER_SESSION_TTL"])
    assert rows["GATEKEEPER_REDIS_URL"].endswith("(file)")
    assert rows["GATEKEEPER_JWT_SECRET"].endswith("(environment)")
    assert "hunter2" not in done.stdout
    assert forge.SECRET not in done.stdout


# check


def test_check_lists_warnings_and_every_claimed_path() -> None:
    done = command("check", jwks_url="http://idp.example.com/jwks")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert any(line.startswith("warning: GATEKEEPER_JWKS_URL") for line in lines)
    assert any(line.startswith("warning: GATEKEEPER_JWT_ISSUER") for line in lines)
    for path in (
        "GET    /api/sessions",
        "PATCH  /api/sessions/{id}/deactivate",
        "DELETE /sessions/user/{user_id}/{id}",
    ):
        assert f"  {path}" in lines
    assert lines[-1] == "ok"


def test_check_lists_no_path_of_a_dialect_that_is_off() -> None:
    done = command("check", dialects="express")
    assert "/api/sessions" in done.stdout
    assert "/sessions/me" not in done.stdout


def test_check_online_asks_the_store_and_the_backend(store: Store) -> None:
    with serve_asgi(starlette_app([])) as backend:
        done = command("check", "--online", redis_url=store.url, upstream_url=backend)
    assert done.returncode == 0, done.stdout
    assert f"backend: {backend}, HTTP/1.1" in done.stdout
    assert "warning: the store does not persist: a restart of it forgets which sessions have ended" in done.stdout
    store.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        evicting = command("check", "--online", redis_url=store.url, trusted_proxies="10.0.0.0/8")
    finally:
        store.client.config_set("maxmemory-policy", "noeviction")
    assert "warning: the store's maxmemory-policy is allkeys-lru" in evicting.stdout  # R6
    address_header = "note: GATEKEEPER_CLIENT_ADDRESS_HEADER: of x-forwarded-for, forwarded, x-real-ip the first one"
    assert address_header in evicting.stdout
    assert address_header not in done.stdout


async def test_check_online_names_the_protocol_of_the_backend(store: Store) -> None:
    async with hypercorn(starlette_app([])) as backend:
        done = await asyncio.to_thread(
            command, "check", "--online", redis_url=store.url, upstream_url=backend, upstream_http2="prior"
        )
    assert f"backend: {backend}, HTTP/2" in done.stdout


def test_check_warns_of_a_choice_that_the_backend_never_gets() -> None:
    done = command("check", upstream_url="http://127.0.0.1:1", upstream_http2="auto")
    assert "warning: GATEKEEPER_UPSTREAM_HTTP2: auto has no effect without https://" in done.stdout
    assert "UPSTREAM_HTTP2" not in command("check", upstream_url="https://a.example", upstream_http2="auto").stdout


def test_check_warns_of_a_header_that_nobody_is_trusted_to_send() -> None:
    warning = "warning: GATEKEEPER_CLIENT_ADDRESS_HEADER: has no effect while GATEKEEPER_TRUSTED_PROXIES is none"
    assert warning in command("check", client_address_header="x-real-ip").stdout
    trusting = {"client_address_header": "x-real-ip", "trusted_proxies": "10.0.0.0/8"}
    for settings in ({}, {"client_address_header": "x-forwarded-for,forwarded,x-real-ip"}, trusting):
        assert "CLIENT_ADDRESS_HEADER" not in command("check", **settings).stdout


def test_check_online_tells_what_does_not_answer(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = command("check", "--online", redis_url=f"unix://{store.path}.away", upstream_url=f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert failed[0] == "failed: session store failed: connection (FileNotFoundError)"
    assert failed[1].startswith(f"failed: GATEKEEPER_UPSTREAM_URL http://127.0.0.1:{port}: the backend cannot be")
    assert len(failed) == 2
    assert done.stdout.splitlines()[-1] == "failed"


def test_check_online_asks_for_the_key_set(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = command("check", "--online", redis_url=store.url, jwks_url=f"http://127.0.0.1:{port}/jwks")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("failed: ")]


def test_check_tells_what_would_happen_to_a_token(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "token"
    user = someone()
    bearing = token(user, jti="mine", roles=["a", "b"])
    before = store.scripts_run
    for text, code, said in (
        (bearing, 0, f"the token is good: user {user}, roles a,b, session mine"),
        (token(user, exp=1), 1, "the token is refused: token_expired (exp has passed)"),
        (forge.token(forge.OTHER_SECRET), 1, "the token is refused: token_invalid"),
        ("nonsense", 1, "the token is refused: token_invalid"),
    ):
        file.write_text(text + "\n")
        done = command("check", "--token", str(file), redis_url=store.url)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert said in done.stdout
        assert text not in done.stdout + done.stderr
        # The verdict comes first.
        assert done.stdout.startswith("the token is ")
    # Without a trace in the store.
    assert store.scripts_run == before
    missing = command("check", "--token", str(tmp_path / "nothing"))
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)


# token


def test_a_development_token_passes(world: World) -> None:
    user = someone()
    done = command("token", "--sub", user, "--role", "admin", "--role", "x", "--ttl", "60")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    bearing = done.stdout.strip()
    request = world.passed("/", bearing)
    assert request.get_all("x-user-id") == [user]
    assert request.get_all("x-user-roles") == ["admin,x"]
    claims = jwt.decode(bearing, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 60
    assert len(claims["jti"]) == 32
    # Each is a session of its own.
    assert command("token", "--sub", user).stdout != command("token", "--sub", user).stdout


def test_a_development_token_keeps_to_the_settings() -> None:
    settings = {"jwt_issuer": "https://issuer.example", "jwt_audience": "api", "jwt_user_claim": "uid"}
    done = command("token", "--sub", "7", "--role", "r", roles_claim="realm.roles", jwt_algorithms="HS512", **settings)
    bearing = done.stdout.strip()
    assert jwt.get_unverified_header(bearing)["alg"] == "HS512"
    claims = jwt.decode(bearing, options={"verify_signature": False})
    assert (claims["uid"], claims["iss"], claims["aud"]) == ("7", "https://issuer.example", "api")
    several = {"jwt_issuer": "https://a.example,https://b.example", "jwt_required_claims": "type=access,app.level=2"}
    claims = jwt.decode(command("token", "--sub", "7", **several).stdout.strip(), options={"verify_signature": False})
    assert (claims["iss"], claims["type"], claims["app.level"]) == ("https://a.example", "access", "2")


def test_there_is_no_development_token_without_a_secret() -> None:
    done = command("token", "--sub", "7", jwks_url="https://idp.example.com/jwks")
    assert (done.returncode, done.stdout) == (2, "")
    assert "GATEKEEPER_JWT_SECRET" in done.stderr


# sessions


def test_sessions_are_listed_and_revoked_in_the_store(world: World, store: Store) -> None:
    user = someone()
    laptop, phone = token(user), token(user)
    world.passed("/", phone, headers=[("User-Agent", "okhttp/4.12.0")])
    (newest, oldest) = world.session_ids(laptop)

    def run(*arguments: str) -> tuple[int, str]:
        done = command("sessions", *arguments, redis_url=store.url)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    code, listed = run("list", user)
    assert (code, [int(line.split()[0]) for line in listed.splitlines()]) == (0, [newest, oldest])
    assert re.fullmatch(
        rf"{oldest} +live +\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ  127\.0\.0\.1 +okhttp", listed.splitlines()[1]
    )
    assert run("revoke", user, str(oldest)) == (0, "1 session ended\n")
    assert b"revoked_by_admin" in world.refused("/", phone).body
    assert run("revoke", user, str(oldest)) == (1, "")
    assert run("revoke", user, "--all") == (0, "1 session(s) ended\n")
    assert world.refused("/", laptop).status == 401
    assert run("list", user) == (0, "")
    for known in (user, someone()):
        done = command("sessions", "list", known, redis_url=store.url)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.splitlines()[1:] == [f"user {known!r}: no live session to list"]
    # What was asked for is so already; a user of whom the store has nothing may be a typing error.
    assert run("revoke", user, "--all") == (0, "0 session(s) ended\n")
    unknown = someone()
    for _ in range(2):
        assert run("revoke", unknown, "--all") == (1, "")
    assert run("revoke", someone(), "5") == (1, "")


def test_inactive_sessions_are_listed_when_asked_for(world: World, store: Store) -> None:
    user = someone()
    bearing = token(user)
    world.passed("/", bearing)
    world.fetch("/sessions/logout", bearing, method="DELETE")
    done = command("sessions", "list", user, "--inactive", redis_url=store.url)
    assert "  logged_out  " in done.stdout


def test_a_store_that_is_away_is_told_in_one_line(store: Store) -> None:
    for arguments in (["list", "1"], ["revoke", "1", "--all"], ["revoke", "1", "2"]):
        done = command("sessions", *arguments, redis_url=f"unix://{store.path}.away")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"store: unix://{store.path}.away\ngatekeeper: session store failed: connection (FileNotFoundError)\n"
        )
