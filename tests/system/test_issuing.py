"""Logins where Gatekeeper issues the tokens: the whole sidecar in front of a backend that knows passwords, and nothing
of tokens (rule 5.7)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import logging
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gatekeeper.settings import load
from gatekeeper.tokens.issuer import new_refresh_token, new_sid
from tests.contracts.dialect import CHROME_ON_WINDOWS, JSON, SAFARI_ON_IPHONE
from tests.contracts.responses import assert_own_response, assert_says_what_is_accepted, error_body
from tests.described import Described
from tests.middleware.host import environ_for, serve_sidecar, sidecar_app
from tests.servers import ClientResponse, RawConnection, RawRequest
from tests.system.sidecar import (
    Backend,
    Reached,
    Sidecar,
    Store,
    World,
    eventually,
    hello,
    sidecar,
    someone,
    token,
)
from tests.system.test_real_logins import next_second
from tests.tokens import forge
from tests.tokens.login_server import http
from tests.tokens.test_signing_keys import private_pem

pytestmark = pytest.mark.slow

T = TypeVar("T")
CHECK = "/internal/check"
PASSWORD = "testpass"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
LOGGED_OUT = b'{"message":"Logged out successfully"}'
BLACKLISTED = error_body("access_token_blacklisted", "logged_out")
REUSED = error_body("session_revoked_or_invalid", "refresh_reused")
WRONG = b'{"detail":"Incorrect username or password","code":"invalid_credentials"}'
_PAIR = re.compile(
    rb'\{"access_token":"(eyJ[\w-]+\.[\w-]+\.[\w-]+)","refresh_token":"([\w-]{43})",'
    rb'"token_type":"bearer","expires_in":(\d+)\}'
)


# The backend: what it answers when it is asked for a password depends on that password


def _user(name: str) -> dict[str, Any]:
    roles = ["user", "admin"] if name.startswith("admin") else ["user"]
    return {"id": int(name) if name.isdigit() else name, "roles": roles, "plan": "pro", "sid": "chosen-by-the-backend"}


ANSWERS = {
    "forbidden": http(b"", "403 Forbidden"),
    "broken": http(b"oops", "500 Internal Server Error"),
    "not found": http(b"", "404 Not Found"),
    "page": http(b"<!doctype html><title>Sign in</title>", "200 OK", "Content-Type: text/html"),
    "nonsense": b"\x16\x03\x01 nonsense\r\n\r\n",
    "redirect": http(b"", "302 Found", "Location: /internal/elsewhere"),
    "nobody": http({"name": "somebody"}),
    "twice": http(b'{"id": 1, "id": 2}'),
    "cut": b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id"',
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
}
DELAYS = {"wrong at once": 0.005, "wrong after all": 0.2}
_barriers: dict[str, asyncio.Barrier] = {}


def wrong_together(count: int) -> str:
    """A wrong password that is answered when so many have asked for it: none fails before all are let through."""
    return f"wrong, {count} at once, {uuid.uuid4().hex}"


async def backend_script(connection: RawConnection, request: RawRequest) -> None:
    if request.target != CHECK.encode():
        await hello(connection, request)
        return
    members = json.loads(request.body)
    name, password = members["username"], members["password"]
    await asyncio.sleep(DELAYS.get(password, 0))
    if together := re.fullmatch(r"wrong, (\d+) at once, \w+", password):
        await _barriers.setdefault(password, asyncio.Barrier(int(together[1]))).wait()
    if password == "silent":
        await connection.gone()
        return
    answer = ANSWERS.get(password, http({"detail": "wrong"}, "401 Unauthorized"))
    if password == PASSWORD:
        answer = http(_user(name))
    elif password == "nested":
        answer = http({"data": {"user": _user(name) | {"tenant": "inner"}}, "tenant": "outer"})
    await connection.write(answer)
    connection.close()


def passed_on(backend: Backend) -> list[Reached]:
    """What the backend was sent, but for what Gatekeeper itself has asked."""
    return [request for request in backend.reached if request.target != CHECK]


def asked(backend: Backend, name: str) -> list[RawRequest]:
    """How often it was asked for the password of a user."""
    checks = [request for request in list(backend.raw) if request.target == CHECK.encode() and request.body]
    return [request for request in checks if json.loads(request.body)["username"] == name]


# Gatekeeper


@contextmanager
def issuing(store: Store, backend: Backend, **settings: str) -> Iterator[World]:
    """The application of a sidecar that issues tokens, for settings that one test wants."""
    usual = {"upstream_url": backend.url, "tokens": "issue", "login_check_url": CHECK}
    environ = environ_for(store, **usual | settings)
    if "signing_key" in settings:
        # It alone suffices.
        del environ["GATEKEEPER_JWT_SECRET"]
    chosen = load(environ, require_upstream=True)
    with serve_sidecar(chosen) as url:
        yield World(url, lambda: passed_on(backend), store)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(backend_script) as running:
        yield running


@pytest.fixture(scope="module")
def gate(store: Store, backend: Backend) -> Iterator[Sidecar]:
    settings = {"tokens": "issue", "login_check_url": CHECK, "debug_endpoints": "true"}
    settings |= {"introspection_clients": f"app:{forge.OTHER_SECRET}", "backchannel_issuer": "https://id.example.com/"}
    with sidecar(backend.url, redis_url=store.url, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def world(gate: Sidecar, backend: Backend, store: Store) -> World:
    return World(gate.url, lambda: passed_on(backend), store)


@pytest.fixture(scope="module")
def undisguised(store: Store, backend: Backend) -> Iterator[World]:
    """Without the session APIs: tokens are issued all the same."""
    with issuing(store, backend, dialects="none") as running:
        yield running


# A client


class Pair(NamedTuple):
    access: str
    refresh: str


def post(
    world: World,
    path: str,
    members: Any = None,
    *,
    bearing: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> ClientResponse:
    if members is None:
        return world.fetch(path, bearing, method="POST", headers=headers)
    body = json.dumps(members).encode()
    return world.fetch(path, bearing, method="POST", headers=[JSON, *headers], body=body)


def pair(answer: ClientResponse, expires_in: int = 900) -> Pair:
    """The tokens in the answer to a login or a refresh, which is this to the byte."""
    match = _PAIR.fullmatch(answer.body)
    assert match is not None, answer
    assert_own_response(answer, 200, answer.body)
    assert answer.get_all("set-cookie") == []
    assert int(match[3]) == expires_in
    return Pair(match[1].decode(), match[2].decode())


def login(world: World, user: str, *, password: str = PASSWORD, **options: Any) -> ClientResponse:
    return post(world, "/auth/login", {"username": user, "password": password}, **options)


def sign_in(world: World, user: str | None = None, **options: Any) -> Pair:
    return pair(login(world, user or someone(), **options))


def renew(world: World, refresh: str, **options: Any) -> ClientResponse:
    return post(world, "/auth/refresh", {"refresh_token": refresh}, **options)


def admitted(world: World, tokens: Pair) -> bool:
    return world.fetch("/protected", tokens.access).status == 200


def refresh_invalid(reason: str | None = None) -> bytes:
    body = {"detail": "Refresh token is invalid or expired", "code": "refresh_token_invalid"}
    return json.dumps(body | ({} if reason is None else {"reason": reason}), separators=(",", ":")).encode()


def part(token: str, number: int) -> dict[str, Any]:
    """The header (0) or the claims (1) of a token."""
    text = token.split(".")[number]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def expired(tokens: Pair) -> str:
    """An access token of the same session whose only fault is its `exp`."""
    now = int(time.time())
    return forge.hs({"alg": "HS256", "typ": "at+jwt"}, part(tokens.access, 1) | {"iat": now - 600, "exp": now - 60})


def session_of(world: World, tokens: Pair) -> dict[str, Any]:
    """The only session of a user, as dialect `users_me` shows it."""
    (session,) = json.loads(world.fetch("/api/users/me/sessions", tokens.access).body)
    found: dict[str, Any] = session
    return found


def seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def in_parallel(*calls: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def at_once(count: int, path: str, members: Any, *worlds: World) -> list[ClientResponse]:
    """The answers to so many requests at once, to each of these Gatekeepers in turn."""
    turn = itertools.cycle(worlds)
    return in_parallel(*(partial(post, next(turn), path, members) for _ in range(count)))


# The flow that the specification tests, and what it tests beside it


async def legacy_script(connection: RawConnection, request: RawRequest) -> None:
    """A backend that signs tokens and forgets them; its logout reads the token in the body alone."""
    action = request.target.decode().strip("/").rpartition("/")[2]
    if request.method != b"POST" or action not in {"login", "refresh", "logout"}:
        await hello(connection, request)
        return
    members = json.loads(request.body)
    if action == "logout":
        assert part(members["access_token"], 1)["jti"]
        await connection.write(http(LOGGED_OUT, "200 OK", "Content-Type: application/json"))
        return
    user = members["username"] if action == "login" else part(members["refresh_token"], 1)["sub"]
    tokens: dict[str, Any] = {"access_token": token(user), "refresh_token": token(user, token_type="refresh")}
    tokens |= {"token_type": "bearer", "expires_in": 900}
    await connection.write(http(tokens, "200 OK", "Content-Type: application/json"))


@pytest.fixture(scope="module")
def observing(store: Store) -> Iterator[World]:
    with Backend(legacy_script) as backend, sidecar_app(store, backend) as running:
        yield running


@pytest.fixture(params=["world", "undisguised", "observing"], ids=["issue", "no dialect", "observe"])
def any_mode(request: pytest.FixtureRequest) -> World:
    found: World = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("slash", ["", "/"], ids=["", "slash"])
@pytest.mark.parametrize("prefix", ["/auth", "/api/v1/auth", ""], ids=["auth", "api", "bare"])
def test_the_flow_of_the_specification(any_mode: World, prefix: str, slash: str) -> None:
    # C-01, C-02, C-03, C-13, C-23, C-38
    def call(action: str, **members: str) -> ClientResponse:
        return post(any_mode, f"{prefix}/{action}{slash}", members)

    def tokens_of(answer: ClientResponse) -> Pair:
        assert answer.status == 200, answer
        found = json.loads(answer.body)
        assert list(found) == ["access_token", "refresh_token", "token_type", "expires_in"]
        assert (found["token_type"], found["expires_in"]) == ("bearer", 900)
        return Pair(found["access_token"], found["refresh_token"])

    def protected(tokens: Pair) -> ClientResponse:
        return any_mode.fetch("/api/v1/protected", tokens.access)

    first = tokens_of(call("login", username=someone(), password=PASSWORD))
    assert (protected(first).status, protected(first).body) == (200, b"ok")
    second = tokens_of(call("refresh", refresh_token=first.refresh))
    assert len({*first, *second}) == 4
    assert protected(second).status == 200
    # With the token of before the refresh, in the body only.
    answer = call("logout", access_token=first.access)
    assert (answer.status, answer.body) == (200, LOGGED_OUT)
    assert_own_response(protected(first), 401, BLACKLISTED)
    assert_own_response(protected(second), 401, BLACKLISTED)
    assert call("refresh", refresh_token=second.refresh).status == 401


def test_the_activity_is_strictly_later_after_one_call(any_mode: World) -> None:  # C-10, C-37
    user = someone()
    tokens = json.loads(login(any_mode, user).body)
    moments = [any_mode.store.last_activity(user)]
    for _ in range(3):
        any_mode.passed("/api/v1/protected", tokens["access_token"])
        moments.append(any_mode.store.last_activity(user))
    assert moments == sorted(set(moments))


# Whose the paths are


def test_another_reading_of_a_path_is_refused_and_another_method_is_the_backends(world: World) -> None:
    user = someone()
    members = {"username": user, "password": PASSWORD}
    for path in ("/AUTH/LOGIN", "/auth//login", "/auth/%6cogin", "/Login", "/x/../login", "/auth/login;a=1", "//login"):
        answer = post(world, path, members)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "bad_request"), path
    tokens = sign_in(world, user)
    for path in ("/auth/login", "/api/v1/auth/refresh", "/logout/"):
        for method in ("GET", "PUT", "DELETE"):
            assert_own_response(world.refused(path, method=method), 401, error_body("token_missing"))
            request = world.passed(path, tokens.access, method=method)
            assert (request.method, request.target, request.get_all("x-user-id")) == (method, path, [user])


def test_the_start_line_names_them_first(gate: Sidecar) -> None:
    paths = ["*/auth/login", "/login", "*/auth/refresh", "/refresh", "*/auth/logout", "/logout"]
    paths += ["/oauth/revoke", "/oauth/introspect", "/_gatekeeper/backchannel-logout"]
    assert gate.paths[:10] == [*(f"POST {path}" for path in paths), "GET /api/v1/auth/users/me/sessions"]


def test_paths_of_ones_own(store: Store, backend: Backend) -> None:
    paths = {"login_paths": "PUT /session", "refresh_paths": "/session/renew", "logout_paths": "DELETE /session"}
    with issuing(store, backend, dialects="none", **paths) as world:
        body = json.dumps({"username": someone(), "password": PASSWORD}).encode()
        tokens = pair(world.fetch("/session", method="PUT", headers=[JSON], body=body))
        tokens = pair(post(world, "/session/renew", {"refresh_token": tokens.refresh}))
        assert world.passed("/auth/login", tokens.access, method="POST").target == "/auth/login"
        assert_own_response(world.fetch("/session", tokens.access, method="DELETE"), 200, LOGGED_OUT)


# Access tokens


def test_an_access_token_says_who_and_nothing_else(world: World) -> None:  # C-01, C-14, RFC 9068
    user = someone()
    began = int(time.time())
    tokens = sign_in(world, user)
    assert part(tokens.access, 0) == {"alg": "HS256", "typ": "at+jwt"}
    claims = part(tokens.access, 1)
    assert claims.keys() == {"iss", "aud", "sub", "sid", "jti", "iat", "exp", "roles"}
    # The backend said it as a number.
    assert (claims["sub"], claims["roles"]) == (user, ["user"])
    assert claims["iss"] == claims["aud"] == "gatekeeper"
    assert began <= claims["iat"] <= time.time()
    assert claims["exp"] == claims["iat"] + 900
    request = world.passed("/protected", tokens.access)
    assert (request.get_all("x-user-id"), request.get_all("x-user-roles")) == ([user], ["user"])


def test_a_renewed_token_is_of_the_same_session_with_an_id_of_its_own(world: World) -> None:  # C-02
    first = sign_in(world)
    second = pair(renew(world, first.refresh))
    old, new = part(first.access, 1), part(second.access, 1)
    assert new["jti"] != old["jti"]
    passing = {name: old[name] for name in ("jti", "iat", "exp")}
    assert new | passing == old


def test_issuer_audience_and_claims_are_those_of_the_settings(store: Store, backend: Backend) -> None:
    settings = {"jwt_issuer": "https://id.example", "jwt_audience": "shop", "jwt_user_claim": "uid"}
    settings |= {"login_user_pointer": "/data/user/id", "login_claims": "roles,tenant,plan"}
    with issuing(store, backend, **settings) as world:
        user = someone()
        tokens = sign_in(world, user, password="nested")
        # `tenant` from the top, the rest from beside the user.
        expected: dict[str, Any] = {"iss": "https://id.example", "aud": "shop", "sub": user, "uid": user}
        expected |= {"tenant": "outer", "plan": "pro", "roles": ["user"]}
        for access in (tokens.access, pair(renew(world, tokens.refresh)).access):
            claims = part(access, 1)
            assert claims.keys() == expected.keys() | {"sid", "jti", "iat", "exp"}
            assert claims | expected == claims
            assert world.passed("/", access).get_all("x-user-id") == [user]
        # What that member is not in is no user.
        assert login(world, someone()).status == 502


@pytest.mark.parametrize(("minutes", "expected"), [("2", 120), ("0.5", 30)])
def test_expires_in_is_the_setting_in_seconds(store: Store, backend: Backend, minutes: str, expected: int) -> None:
    # C-01, C-35
    with issuing(store, backend, access_token_expire_minutes=minutes) as world:
        tokens = pair(login(world, someone()), expected)
        claims = part(pair(renew(world, tokens.refresh), expected).access, 1)
        assert claims["exp"] - claims["iat"] == expected


def test_a_token_never_outlives_its_session(store: Store, backend: Backend) -> None:  # C-01, C-02, B-12
    with issuing(store, backend, session_ttl="5s") as world:
        first = sign_in(world)
        ends_at = seconds(session_of(world, first)["expires_at"])
        assert ends_at - 2 < part(first.access, 1)["exp"] <= ends_at
        time.sleep(0.05)
        second = pair(renew(world, first.refresh))
        assert part(second.access, 1)["exp"] == part(first.access, 1)["exp"]
        assert seconds(session_of(world, second)["expires_at"]) == ends_at


def test_a_session_that_lives_for_less_than_a_second_is_no_fault(store: Store, backend: Backend) -> None:
    with issuing(store, backend, session_ttl="300ms", jwt_leeway="0s") as world:
        # Its token, in whole seconds, is over at once.
        next_second()
        assert login(world, someone()).status == 200


# Keys


def _keys() -> dict[str, Any]:
    return {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def test_a_private_key_alone_suffices_and_its_public_half_is_published(store: Store, backend: Backend) -> None:
    for algorithm, key in _keys().items():
        with issuing(store, backend, signing_key=private_pem(key)) as world:
            tokens = sign_in(world)
            answer = world.fetch("/.well-known/jwks.json")
            (published,) = json.loads(answer.body)["keys"]
            assert_own_response(answer, 200, answer.body)
            assert list(json.loads(answer.body)) == ["keys"]
            kid = part(tokens.access, 0)["kid"]
            assert published == forge.jwk(key, use="sig", alg=algorithm, kid=kid)
            assert part(tokens.access, 0) == {"alg": algorithm, "typ": "at+jwt", "kid": kid}
            # As another service of the team would verify it.
            claims = jwt.decode(tokens.access, jwt.PyJWK(published), algorithms=[algorithm], audience="gatekeeper")
            assert claims == part(tokens.access, 1)
            assert admitted(world, tokens)
            assert admitted(world, pair(renew(world, tokens.refresh)))
            for path in ("/.well-known/jwks.json/", "/.well-known/jwks.json?x=1"):
                assert world.fetch(path, "x").body == answer.body
            head = world.fetch("/.well-known/jwks.json", method="HEAD")
            assert (head.status, head.body) == (200, b"")
            document = described(world)
            document.validate(document.operations["GET", "/.well-known/jwks.json"], answer)


def test_with_a_secret_there_is_nothing_to_publish(world: World) -> None:
    assert_own_response(world.refused("/.well-known/jwks.json"), 401, error_body("token_missing"))
    request = world.passed("/.well-known/jwks.json", sign_in(world).access)
    assert request.target == "/.well-known/jwks.json"


def test_a_secret_of_its_own_alone_suffices_and_the_first_one_signs(
    world: World, store: Store, backend: Backend
) -> None:
    before = sign_in(world)
    with issuing(store, backend, signing_key=f"{forge.OTHER_SECRET}\n{forge.SECRET}") as rotated:
        tokens = sign_in(rotated)
        claims = jwt.decode(tokens.access, forge.OTHER_SECRET, algorithms=["HS256"], audience="gatekeeper")
        assert claims == part(tokens.access, 1)
        assert admitted(rotated, tokens)
        assert admitted(rotated, before)
    # Where the new one is not known yet, it is as if anybody had signed.
    assert_own_response(world.refused("/", tokens.access), 401, error_body("token_invalid"))


def test_after_a_rotation_the_new_key_signs_and_the_old_one_still_counts(store: Store, backend: Backend) -> None:
    old, new = private_pem(ec.generate_private_key(ec.SECP256R1())), private_pem(ed25519.Ed25519PrivateKey.generate())
    with issuing(store, backend, signing_key=old) as world:
        before = sign_in(world)
    with issuing(store, backend, signing_key=new + old) as world:
        published = json.loads(world.fetch("/.well-known/jwks.json").body)["keys"]
        assert [key["alg"] for key in published] == ["EdDSA", "ES256"]
        assert admitted(world, before)
        after = pair(renew(world, before.refresh))
        assert part(after.access, 0)["kid"] == published[0]["kid"]
        assert part(before.access, 0)["kid"] == published[1]["kid"]
        assert admitted(world, after)
    with issuing(store, backend, signing_key=new) as world:
        assert_own_response(world.refused("/", before.access), 401, error_body("token_invalid"))
        assert admitted(world, after)


def test_a_token_of_our_key_without_a_session_is_refused(world: World) -> None:  # C-11
    user = someone()
    for sent in (token(user), token(user, sid=new_sid()), token(user, jti=...)):
        assert_own_response(world.refused("/", sent), 401, error_body("session_revoked_or_invalid"))
    assert world.store.live(user) == 0


def test_what_a_good_token_is_made_of(world: World) -> None:  # C-11, C-13, C-22
    user = someone()
    tokens, second = sign_in(world, user), sign_in(world, user)
    assert admitted(world, tokens)
    bad_signature = tokens.access[:-2] + ("AA" if tokens.access[-2:] != "AA" else "BB")
    assert_own_response(world.refused("/", bad_signature), 401, error_body("token_invalid"))
    (mine,) = [
        row["id"] for row in json.loads(world.fetch("/api/users/me/sessions", tokens.access).body) if row["is_current"]
    ]
    assert world.fetch(f"/sessions/{mine}", second.access, method="DELETE").status == 200
    revoked = error_body("session_revoked_or_invalid", "revoked_by_user")
    assert_own_response(world.refused("/", tokens.access), 401, revoked)
    assert_own_response(renew(world, tokens.refresh), 401, refresh_invalid("revoked_by_user"))
    assert admitted(world, second)


def test_the_session_is_that_of_the_login(world: World) -> None:  # C-17, E-05
    user = someone()
    tokens = sign_in(world, user, headers=[("User-Agent", CHROME_ON_WINDOWS)])
    assert world.store.live(user) == 1
    (session,) = json.loads(world.fetch("/api/v1/auth/users/me/sessions/", tokens.access).body)["data"]["sessions"]
    assert (session["login_method"], session["user_agent"]) == ("password", CHROME_ON_WINDOWS)
    renewed = pair(renew(world, tokens.refresh, headers=[("User-Agent", SAFARI_ON_IPHONE)]))
    assert session_of(world, renewed)["device_name"] == "Chrome on Windows"


# Logins that fail


def test_a_wrong_password_is_said_in_these_words(world: World, backend: Backend) -> None:  # C-11, C-39
    user, members = someone(), {"username": someone(), "password": "wrong"}
    wrong, forbidden, by_body, by_header = in_parallel(
        lambda: login(world, user, password="wrong"),
        lambda: login(world, user, password="forbidden"),
        lambda: post(world, "/auth/login", members | {"language": "fr"}),
        lambda: post(world, "/auth/login", members, headers=[("Accept-Language", "fr")]),
    )
    for answer in (wrong, forbidden):
        assert_own_response(answer, 401, WRONG)
        # No token was sent, so none was bad (RFC 6750 section 3).
        assert answer.get_all("www-authenticate") == ["Bearer"]
    assert (len(asked(backend, user)), world.store.live(user)) == (2, 0)
    french = {"detail": "Nom d'utilisateur ou mot de passe incorrect", "code": "invalid_credentials"}
    assert json.loads(by_body.body) == json.loads(by_header.body) == french


def test_what_is_no_login_never_reaches_the_backend(world: World, backend: Backend) -> None:  # S20
    user = someone()
    good = json.dumps({"username": user, "password": PASSWORD}).encode()
    form = f"username={user}&password={PASSWORD}".encode()
    for body, headers, status, code in [
        (b"", [], 400, "bad_request"),
        (b"{", [JSON], 400, "bad_request"),
        (b"[]", [JSON], 400, "bad_request"),
        (b"{}", [JSON], 400, "bad_request"),
        (json.dumps({"username": user}).encode(), [JSON], 400, "bad_request"),
        (json.dumps({"username": int(user), "password": PASSWORD}).encode(), [JSON], 400, "bad_request"),
        (json.dumps({"username": user, "password": [PASSWORD]}).encode(), [JSON], 400, "bad_request"),
        (good, [], 415, "unsupported_media_type"),
        (good, [("Content-Type", "text/plain")], 415, "unsupported_media_type"),
        (form, [FORM], 415, "unsupported_media_type"),
        (gzip.compress(good), [JSON, ("Content-Encoding", "gzip")], 415, "unsupported_media_type"),
        (good + b" " * 65_536, [JSON], 413, "body_too_large"),
    ]:
        answer = world.refused("/auth/login", method="POST", headers=headers, body=body)
        assert (answer.status, json.loads(answer.body)["code"]) == (status, code), body[:40]
        assert list(json.loads(answer.body)) == ["detail", "code"]
        if status == 415:
            assert_says_what_is_accepted(answer, headers, "application/json")
    assert (asked(backend, user), world.store.live(user)) == ([], 0)


def test_the_same_json_goes_to_the_backend_with_who_asks(world: World, backend: Backend) -> None:
    user, request_id = someone(), uuid.uuid4().hex
    members = {"totp": "123456", "username": user, "password": PASSWORD, "nested": {"é": [1, None, 2.5]}}
    told = [
        ("User-Agent", "shop/2 東京".encode().decode("latin-1")),
        ("X-Request-Id", request_id),
        ("X-Forwarded-For", "203.0.113.9"),
        ("Cookie", "a=b"),
    ]
    answer = post(world, "/auth/login", members, headers=[*told, ("X-User-Id", "1")])
    assert answer.get_all("x-request-id") == [request_id]
    pair(answer)
    (request,) = asked(backend, user)
    assert (request.method, json.loads(request.body)) == (b"POST", members)
    assert request.get_all(b"content-type") == [b"application/json"]
    assert request.get_all(b"x-request-id") == [request_id.encode()]
    # Of a peer that is not trusted, the word is not believed.
    assert request.get_all(b"x-forwarded-for") == [b"127.0.0.1"]
    assert request.get_all(b"user-agent") == ["shop/2 東京".encode()]
    assert request.get_all(b"cookie") == request.get_all(b"authorization") == request.get_all(b"x-user-id") == []


@pytest.fixture(scope="module")
def impatient(store: Store, backend: Backend) -> Iterator[World]:
    with issuing(store, backend, upstream_timeout="3s") as running:
        yield running


@pytest.mark.parametrize("password", [*(name for name in ANSWERS if name != "forbidden"), "silent"])
def test_a_check_in_trouble_is_no_wrong_password(impatient: World, backend: Backend, password: str) -> None:  # J7
    user = someone()
    answer = login(impatient, user, password=password)
    expected = (504, "upstream_timeout") if password == "silent" else (502, "upstream_unavailable")
    assert (answer.status, json.loads(answer.body)["code"]) == expected
    assert list(json.loads(answer.body)) == ["detail", "code"]
    assert answer.get_all("set-cookie") == []
    # No retry, no redirect followed, no session; and nothing counts as a wrong password.
    time.sleep(0.05)
    assert (len(asked(backend, user)), impatient.store.live(user)) == (1, 0)
    assert not [request for request in backend.reached if request.target == "/internal/elsewhere"]
    pair(login(impatient, user))


def test_a_check_that_is_down_is_a_bad_gateway(store: Store, backend: Backend) -> None:  # J7
    with closing(socket.socket()) as bound:
        # Bound, and nobody listens.
        bound.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{bound.getsockname()[1]}/check"
        with issuing(store, backend, login_check_url=where) as world:
            user = someone()
            answer = login(world, user)
            assert (answer.status, json.loads(answer.body)["code"]) == (502, "upstream_unavailable")
            assert world.store.live(user) == 0


def test_nobody_learns_whether_a_name_exists(world: World) -> None:  # S23
    """The check finds out at once that a name is unknown; for a wrong password it takes its time."""

    def attempt(password: str) -> tuple[float, ClientResponse]:
        began = time.monotonic()
        address = f"198.51.100.{random.randrange(1, 255)}"
        answer = login(world, someone(), password=password, headers=[("X-Forwarded-For", address)])
        return time.monotonic() - began, answer

    def shown(answer: ClientResponse) -> Any:
        passing = {"date", "x-request-id"}
        return answer.status, answer.reason, answer.body, [pair for pair in answer.headers if pair[0] not in passing]

    names, found = list(DELAYS) * 3, []
    for _ in range(20):
        found += in_parallel(*(partial(attempt, name) for name in names))
        answers = [shown(answer) for _, answer in found]
        assert answers == answers[:1] * len(found)
        best = [min(seconds for seconds, _ in found[place::2]) for place in range(2)]
        assert min(best) >= 0.5
        # The same step for both: the next one would be a whole second. Only a slow machine needs more than one round.
        if max(best) < 0.95:
            break
    else:
        pytest.fail(f"one of them takes longer, or this machine is too slow to tell: {best}")


def test_who_fails_too_often_has_to_wait_whoever_it_is(world: World, backend: Backend) -> None:  # S22, S23
    body = b'{"detail":"Too many requests, try again later","code":"rate_limited"}'

    def attempts(*spellings: str, password: str = "wrong") -> list[ClientResponse]:
        told = [("X-Forwarded-For", f"198.51.100.{number}") for number in range(len(spellings))]
        calls = zip(spellings, told, strict=True)
        return in_parallel(*(partial(login, world, name, password=password, headers=[each]) for name, each in calls))

    def spelled(name: str) -> list[str]:
        return [name, name.upper(), f" {name} ", name.lower(), name.swapcase()]

    def throttled(seconds: str, *spellings: str) -> bool:
        """Whether they had to wait so long, without the backend being asked; else so much time has passed that they
        had not."""
        before = len(backend.raw)
        answers = attempts(*spellings)
        if time.monotonic() - began > 0.95:
            return False
        assert len(backend.raw) == before
        told = {(answer.status, answer.body, *answer.get_all("retry-after")) for answer in answers}
        assert told == {(429, body, seconds)}
        assert len({tuple(name for name, _ in answer.headers) for answer in answers}) == 1
        return True

    for _ in range(20):
        # One whom the backend knows, and one whom it does not: nothing tells them apart.
        known, unknown = f"Zoë.{someone()}", f"nobody.{someone()}"
        began = time.monotonic()
        found = attempts(*spelled(known) * 2, *spelled(unknown) * 2, password=wrong_together(20))
        assert [answer.status for answer in found] == [401] * 20
        if not throttled("1", known, unknown, known.replace("o", "ｏ"), unknown.swapcase()):
            continue
        # Another name is not concerned.
        pair(login(world, someone()))
        time.sleep(1)
        began = time.monotonic()
        assert [answer.status for answer in attempts(known)] == [401]
        if throttled("2", known):
            break
    else:
        pytest.fail("this machine is too slow to tell")


def test_a_name_is_limited_over_all_addresses_and_an_address_over_all_names(store: Store, backend: Backend) -> None:
    # S22
    def attempts(world: World, many: Iterable[tuple[str, str]], password: str = "wrong") -> list[int]:
        def attempt(name: str, address: str) -> int:
            return login(world, name, password=password, headers=[("X-Forwarded-For", address)]).status

        return in_parallel(*(partial(attempt, name, address) for name, address in many))

    settings = {"login_rate_limit": "2/15m", "trusted_proxies": "127.0.0.1", "key_prefix": "limited:"}
    with issuing(store, backend, **settings) as world:
        name, address = someone(), "203.0.113.250"
        many = [(name, f"203.0.113.{number}") for number in range(24)] + [(someone(), address) for _ in range(24)]
        assert attempts(world, many, wrong_together(48)) == [401] * 48
        assert attempts(world, [(name, "203.0.113.99"), (someone(), address)], PASSWORD) == [429] * 2
        # What succeeds forgets what has failed before it.
        somebody = [(someone(), "203.0.113.251")]
        for _ in range(2):
            assert attempts(world, somebody) == [401]
            assert attempts(world, somebody, PASSWORD) == [200]


# Refresh


def test_a_refresh_is_activity_and_no_longer_life(world: World) -> None:  # C-02, D-08
    user = someone()
    first = sign_in(world, user)
    before, activity = session_of(world, first), world.store.last_activity(user)
    second = pair(renew(world, first.refresh))
    assert world.store.last_activity(user) > activity
    after = session_of(world, second)
    assert after | {"last_activity": before["last_activity"]} == before
    assert len({*first, *second}) == 4
    # The access token of before is as good as it was.
    assert admitted(world, first)


def test_100_refreshes_at_once_through_two_processes_have_one_successor(world: World, undisguised: World) -> None:
    # S05
    user = someone()
    first = sign_in(world, user)
    answers = at_once(100, "/auth/refresh", {"refresh_token": first.refresh}, world, undisguised)
    assert len({answer.body for answer in answers}) == 1
    second = pair(answers[0])
    assert world.store.live(user) == 1
    assert admitted(undisguised, second)
    third = pair(renew(undisguised, second.refresh))
    assert admitted(world, third)
    assert len(json.loads(world.fetch("/sessions/me", third.access).body)) == 1


def audited(gate: Sidecar, user: str, action: str) -> list[dict[str, Any]]:
    """The audit lines of a user; they may follow the answer by a moment."""

    def lines() -> list[dict[str, Any]]:
        found = [line for line in gate.log if line["event"] == "audit"]
        return [line for line in found if line["action"] == action and user in (line["user_id"], line["user_name"])]

    found: list[dict[str, Any]] = eventually(lines)
    return found


def test_a_refresh_token_used_again_after_its_successor_ends_the_session(world: World, gate: Sidecar) -> None:
    # S06, S24
    user = someone()
    first = sign_in(world, user)
    second = pair(renew(world, first.refresh))
    third = pair(renew(world, second.refresh))
    request_id = uuid.uuid4().hex
    answer = renew(world, first.refresh, headers=[("X-Request-Id", request_id)])
    assert_own_response(answer, 401, refresh_invalid("refresh_reused"))
    assert answer.get_all("www-authenticate") == [
        'Bearer error="invalid_token", error_description="Refresh token is invalid or expired"'
    ]
    for each in (first, second, third):
        assert_own_response(world.refused("/", each.access), 401, REUSED)
        assert_own_response(renew(world, each.refresh), 401, refresh_invalid("refresh_reused"))
    assert world.store.live(user) == 0
    (line,) = audited(gate, user, "session_ended")
    assert (line["reason"], line["request_id"], line["client_ip"]) == ("refresh_reused", request_id, "127.0.0.1")
    assert line["session_id"] > 0
    assert gate.metric("gatekeeper_session_events_total", event="refresh_reused", actor="system") >= 1


def test_the_window_is_for_the_immediate_predecessor_only(world: World) -> None:  # S07
    first = sign_in(world)
    second = pair(renew(world, first.refresh))
    assert renew(world, first.refresh).body == renew(world, first.refresh).body
    assert pair(renew(world, first.refresh)) == second
    third = pair(renew(world, second.refresh))
    # Within the window of the second, which is not the first's.
    assert pair(renew(world, second.refresh)) == third
    assert_own_response(renew(world, first.refresh), 401, refresh_invalid("refresh_reused"))
    assert not admitted(world, third)


def test_after_the_window_an_unused_successor_is_replaced_and_its_use_ends_the_session(
    store: Store, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:  # S05, S06
    with issuing(store, backend, refresh_reuse_window="3s") as world:
        user = someone()
        first = sign_in(world, user)
        second = pair(renew(world, first.refresh))
        assert pair(renew(world, first.refresh)) == second
        time.sleep(3.05)
        # The phone that lost the response wakes up.
        third = pair(renew(world, first.refresh))
        assert third.refresh != second.refresh
        assert pair(renew(world, first.refresh)) == third
        assert admitted(world, third)
        with caplog.at_level(logging.INFO, "gatekeeper.audit"):
            # Somebody else has the response that was lost.
            assert_own_response(renew(world, second.refresh), 401, refresh_invalid("refresh_reused"))

            def said() -> list[Any]:
                found = [vars(record) for record in caplog.records if vars(record).get("user_id") == user]
                return [each["reason"] for each in found if each["action"] == "session_ended"]

            assert eventually(said) == ["refresh_reused"]
        for each in (first, second, third):
            assert_own_response(world.refused("/", each.access), 401, REUSED)
            assert_own_response(renew(world, each.refresh), 401, refresh_invalid("refresh_reused"))


def test_without_a_window_nothing_is_given_twice(store: Store, backend: Backend) -> None:
    with issuing(store, backend, refresh_reuse_window="0s") as world:
        user = someone()
        first = sign_in(world, user)
        second = pair(renew(world, first.refresh))
        assert store.client.exists(f"gk:{{{user}}}:pairs") == 0
        third = pair(renew(world, first.refresh))
        assert third != second
        fourth = pair(renew(world, third.refresh))
        # Its successor was used.
        assert_own_response(renew(world, first.refresh), 401, refresh_invalid("refresh_reused"))
        assert not admitted(world, fourth)


def test_a_client_that_lost_the_answer_gets_the_same_pair(world: World) -> None:  # S08
    user = someone()
    first = sign_in(world, user)
    body = json.dumps({"refresh_token": first.refresh}).encode()
    head = "POST /auth/refresh HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    parts = urlsplit(world.url)
    with closing(socket.create_connection((parts.hostname or "", parts.port or 0))) as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: world.store.client.exists(f"gk:{{{user}}}:pairs"))
        # Rotated, and the connection ends before anything was read.
        connection.shutdown(socket.SHUT_RDWR)
    newest = json.loads(world.fetch("/debug/session-info", first.access).body)["jti"]
    assert newest != part(first.access, 1)["jti"]
    second = pair(renew(world, first.refresh))
    assert part(second.access, 1)["jti"] == newest
    assert pair(renew(world, first.refresh)) == second
    assert admitted(world, pair(renew(world, second.refresh)))
    assert world.store.live(user) == 1


def test_a_refresh_token_beside_somebody_elses_access_token_is_refused(world: World) -> None:  # S09
    user = someone()
    mine, theirs = sign_in(world, user), sign_in(world)
    activity = world.store.last_activity(user)
    for bearing in (theirs.access, expired(theirs)):
        assert_own_response(renew(world, mine.refresh, bearing=bearing), 401, error_body("token_invalid"))
    assert world.store.last_activity(user) == activity
    # One's own is no matter, an expired one too.
    second = pair(renew(world, mine.refresh, bearing=expired(mine)))
    assert admitted(world, pair(renew(world, second.refresh, bearing=second.access)))
    assert admitted(world, theirs)


def test_a_refresh_after_the_end_is_refused_and_is_no_activity(store: Store, backend: Backend) -> None:
    # S10, C-11, C-20
    def last_seen(world: World, by: Pair, session: int) -> str:
        rows = json.loads(world.fetch("/api/users/me/sessions?include_inactive=true", by.access).body)
        (found,) = [row["last_activity"] for row in rows if row["id"] == session]
        return str(found)

    with issuing(store, backend, idle_timeout="2s") as world:
        user = someone()
        tokens = sign_in(world, user)
        session = session_of(world, tokens)
        time.sleep(2.05)
        assert_own_response(renew(world, tokens.refresh), 401, refresh_invalid("idle"))
        assert_own_response(world.refused("/", tokens.access), 401, error_body("session_inactivity_timeout", "idle"))
        assert last_seen(world, sign_in(world, user), session["id"]) == session["last_activity"]
    with issuing(store, backend, session_ttl="500ms") as world:
        user = someone()
        tokens = sign_in(world, user)
        time.sleep(0.55)
        assert_own_response(renew(world, tokens.refresh), 401, refresh_invalid("expired"))
        assert_own_response(world.refused("/", tokens.access), 401, error_body("session_expired", "expired"))
    with issuing(store, backend, device_limit="1") as world:
        user = someone()
        tokens, second = sign_in(world, user), sign_in(world, user)
        assert_own_response(renew(world, tokens.refresh), 401, refresh_invalid("evicted"))
        session = session_of(world, second)
        assert post(world, "/auth/logout", bearing=second.access).status == 200
        assert_own_response(renew(world, second.refresh), 401, refresh_invalid("logged_out"))
        last = sign_in(world, user)
        assert last_seen(world, last, session["id"]) >= session["last_activity"]
        assert world.fetch("/sessions/all", last.access, method="DELETE").status == 200
        assert_own_response(renew(world, last.refresh), 401, refresh_invalid("revoked_by_user"))
        # A sign-in of the same second is a new one.
        assert admitted(world, sign_in(world, user))


def test_what_is_no_refresh_token_of_ours_is_refused(world: World) -> None:  # C-02, C-39
    tokens = sign_in(world)
    for sent in (new_refresh_token(), tokens.refresh[:-1], tokens.refresh + "=", tokens.access, "", "é", "x" * 9000):
        assert_own_response(renew(world, sent), 401, refresh_invalid())
    answer = post(world, "/auth/refresh", {"refresh_token": "x", "language": "fr"})
    assert json.loads(answer.body)["detail"] == "Le jeton de rafraîchissement est invalide ou a expiré"
    for members in ({}, {"refresh_token": None}, {"refresh_token": 1}, {"refresh_token": [tokens.refresh]}, ["x"]):
        answer = post(world, "/auth/refresh", members)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "bad_request"), members
    # An access token is none, and a refresh token opens nothing.
    assert_own_response(world.refused("/", tokens.refresh), 401, error_body("token_invalid"))
    assert admitted(world, pair(renew(world, tokens.refresh)))


def test_refreshes_and_logouts_are_limited_for_each_user(store: Store, backend: Backend) -> None:
    with issuing(store, backend, rate_limit="1/h") as world:
        first, other = sign_in(world), sign_in(world)
        second = pair(renew(world, first.refresh))
        for answer in (renew(world, second.refresh), post(world, "/auth/logout", bearing=first.access)):
            assert (answer.status, json.loads(answer.body)["code"]) == (429, "rate_limited")
            assert 3590 < int(answer.get_all("retry-after")[0]) <= 3600
        # Nothing was done, and nobody else is concerned.
        assert admitted(world, second)
        assert_own_response(post(world, "/auth/logout", bearing=other.access), 200, LOGGED_OUT)


@pytest.mark.parametrize(("policy", "most"), [("evict_idle", 100), ("evict_oldest", 100), ("reject", 3)])
def test_100_logins_at_once_leave_three_sessions(store: Store, backend: Backend, policy: str, most: int) -> None:
    # C-12, C-21, D-07, S01
    with issuing(store, backend, device_limit_policy=policy) as world:
        user = someone()
        answers = at_once(100, "/auth/login", {"username": user, "password": PASSWORD}, world)
        tokens = [pair(answer) for answer in answers if answer.status == 200]
        assert len(tokens) == len({each.access for each in tokens}) == len({each.refresh for each in tokens}) == most
        for answer in answers:
            if answer.status != 200:
                assert_own_response(answer, 403, error_body("session_limit_exceeded"))
        assert store.live(user) == 3
        judged = in_parallel(*(partial(world.fetch, "/", each.access) for each in tokens))
        evicted = error_body("session_revoked_or_invalid", "evicted")
        assert sorted(answer.body for answer in judged) == sorted([b"ok"] * 3 + [evicted] * (most - 3))


# What the store and the log hold


def everything(store: Store) -> bytes:
    """Every key of the store with its value; names and values stand for themselves, packed or not."""
    found: list[Any] = []
    with redis.Redis(unix_socket_path=str(store.path)) as client:
        readers: dict[bytes, Callable[[bytes], Any]] = {
            b"string": client.get,
            b"hash": lambda key: [item for field in client.hgetall(key).items() for item in field],
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"stream": lambda key: repr(client.xrange(key)).encode(),
        }
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            # One that has expired meanwhile is of no kind.
            value = readers[kind](key) if kind != b"none" else None
            found += [key, *(value if isinstance(value, list) else [value or b""])]
    return b"\n".join(found)


def test_who_reads_the_store_can_use_nothing_of_it(world: World) -> None:  # S25
    user, spare = someone(), someone()
    first = sign_in(world, user)
    second = pair(renew(world, first.refresh))
    failed = f"hunter2-{uuid.uuid4().hex}"
    assert login(world, spare, password=failed).status == 401
    held = everything(world.store)
    # The pair of the window is there, sealed.
    assert f"gk:{{{user}}}:pairs".encode() in held
    for each in (first, second):
        raw, access = base64.urlsafe_b64decode(each.refresh + "="), each.access.encode()
        for secret in (each.refresh.encode(), raw, raw.hex().encode(), access, *access.split(b".")[1:]):
            assert secret not in held
    assert failed.encode() not in held
    assert PASSWORD.encode() not in held


def test_10_000_tokens_are_all_different_and_random() -> None:  # S25
    for make, bits in ((new_refresh_token, 256), (new_sid, 192)):
        made = {make() for _ in range(10_000)}
        assert len(made) == 10_000
        numbers = [int.from_bytes(base64.urlsafe_b64decode(each + "=" * (-len(each) % 4))) for each in made]
        assert max(numbers).bit_length() <= bits
        # Ten standard deviations from the half for each bit of it.
        assert all(4_500 < sum(number >> bit & 1 for number in numbers) < 5_500 for bit in range(bits))


def test_what_happened_is_written_down_without_a_secret(world: World, gate: Sidecar) -> None:
    user, request_id, failed = someone(), uuid.uuid4().hex, f"hunter2-{uuid.uuid4().hex}"
    login(world, user, password=failed)
    first = pair(login(world, user, headers=[("X-Request-Id", request_id)]))
    second = pair(renew(world, first.refresh))
    post(world, "/auth/logout", {"access_token": first.access})
    renew(world, second.refresh)
    (line,) = audited(gate, user, "login_failed")
    assert (line["user_name"], line["user_id"]) == (user, None)
    (line,) = audited(gate, user, "session_opened")
    assert (line["user_name"], line["user_id"], line["request_id"]) == (user, user, request_id)
    session = line["session_id"]
    for action, reason in (("refreshed", None), ("session_ended", "logged_out"), ("refresh_refused", "logged_out")):
        (line,) = audited(gate, user, action)
        assert (line["session_id"], line["reason"]) == (session, reason)
    access = gate.access_of(request_id)
    assert (access["route"], access["user_id"], access["session_id"]) == ("*/auth/login", user, session)
    for secret in (*first, *second, failed, PASSWORD):
        assert secret not in gate.stderr + gate.stdout


# Logout


CLOSED = b'{"success":true,"message":"Current session closed successfully"}'


@pytest.fixture(params=["POST /auth/logout", "DELETE /sessions/logout"])
def way_out(request: pytest.FixtureRequest) -> str:  # C-03, D-03
    return str(request.param)


def sign_out(
    world: World, way: str, bearing: str | None = None, headers: Iterable[tuple[str, str]] = (), **members: Any
) -> ClientResponse:
    method, path = way.split(" ")
    if not members:
        return world.fetch(path, bearing, method=method, headers=headers)
    return world.fetch(path, bearing, method=method, headers=[JSON, *headers], body=json.dumps(members).encode())


def assert_signed_out(answer: ClientResponse, way: str) -> None:
    assert_own_response(answer, 200, LOGGED_OUT if way.startswith("POST") else CLOSED)


def test_a_logout_takes_the_token_wherever_it_is(world: World, way_out: str) -> None:  # C-03, C-13, D-03
    for where in ("bearer", "body", "both"):
        tokens = sign_in(world)
        bearing = tokens.access if where != "body" else None
        members: dict[str, Any] = {"access_token": tokens.access} if where != "bearer" else {}
        for _ in range(2):
            # The second time it is over already.
            assert_signed_out(sign_out(world, way_out, bearing, **members), way_out)
            assert_own_response(world.refused("/", tokens.access), 401, BLACKLISTED)
        assert_own_response(renew(world, tokens.refresh), 401, refresh_invalid("logged_out"))


def test_two_tokens_of_one_user_end_both_sessions(world: World, way_out: str) -> None:  # C-03, D-03, S27
    user = someone()
    first, second, third = (sign_in(world, user) for _ in range(3))
    assert_signed_out(sign_out(world, way_out, first.access, access_token=second.access), way_out)
    for each in (first, second):
        assert_own_response(world.refused("/", each.access), 401, BLACKLISTED)
    assert admitted(world, third)


def test_tokens_of_two_users_end_nothing(world: World, way_out: str) -> None:  # S27
    mine, theirs = sign_in(world), sign_in(world)
    for bearing, body in ((mine.access, theirs.access), (expired(mine), theirs.access), (mine.access, expired(theirs))):
        assert_own_response(sign_out(world, way_out, bearing, access_token=body), 401, error_body("token_invalid"))
    assert admitted(world, mine)
    assert admitted(world, theirs)


def test_a_token_whose_only_fault_is_its_exp_counts(world: World, way_out: str) -> None:  # C-03, C-38, D-03
    for where in ("bearer", "body"):
        tokens = sign_in(world)
        late = expired(tokens)
        assert_own_response(world.refused("/", late), 401, error_body("token_expired"))
        answer = sign_out(world, way_out, late) if where == "bearer" else sign_out(world, way_out, access_token=late)
        assert_signed_out(answer, way_out)
        assert_own_response(world.refused("/", tokens.access), 401, BLACKLISTED)


def test_a_logout_without_a_good_token_ends_nothing(world: World, way_out: str) -> None:  # C-03, D-03
    tokens = sign_in(world)
    for answer in (sign_out(world, way_out), sign_out(world, way_out, language="en")):
        assert_own_response(answer, 401, error_body("token_missing"))
        assert answer.get_all("www-authenticate") == ["Bearer"]
    forged = forge.hs({"alg": "HS256", "typ": "at+jwt"}, part(tokens.access, 1), forge.OTHER_SECRET)
    challenge = ['Bearer error="invalid_token", error_description="Invalid authentication token"']
    for bad in ("garbage", "a.b.c", forged):
        for answer in (
            sign_out(world, way_out, bad),
            sign_out(world, way_out, access_token=bad),
            sign_out(world, way_out, tokens.access, access_token=bad),
            sign_out(world, way_out, bad, access_token=tokens.access),
        ):
            assert_own_response(answer, 401, error_body("token_invalid"))
            assert answer.get_all("www-authenticate") == challenge
    for odd in (1, [tokens.access], {"a": 1}):
        answer = sign_out(world, way_out, access_token=odd)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "bad_request")
    assert admitted(world, tokens)


def test_a_logout_answers_in_the_language_that_is_asked_for(world: World, way_out: str) -> None:  # C-39
    french = "Déconnexion réussie" if way_out.startswith("POST") else "La session actuelle a été fermée avec succès"
    access = sign_in(world).access
    asking = partial(sign_out, world, way_out, access_token=access)
    for answer in (
        asking(language="fr"),
        asking(language="fr-CA"),
        asking(headers=[("Accept-Language", "fr;q=0.9, de")]),
        asking(headers=[("Accept-Language", "en")], language="fr"),
    ):
        assert json.loads(answer.body)["message"] == french
    assert_signed_out(asking(headers=[("Accept-Language", "fr")], language="en"), way_out)


# A new sign-in


def test_no_client_chooses_the_name_of_its_session(world: World) -> None:  # S11
    user = someone()
    victim = sign_in(world)
    chosen = new_sid()
    members = {"username": user, "password": PASSWORD, "refresh_token": "x"}
    members |= dict.fromkeys(("sid", "session_id", "jti"), chosen)
    names = {"sid": chosen, "session_id": chosen, "access_token": victim.access, "__Host-access": victim.access}
    cookies = ("Cookie", "; ".join(f"{name}={value}" for name, value in names.items()))
    tokens = pair(post(world, f"/auth/login?sid={chosen}", members, headers=[cookies, ("X-Session-Id", "1")]))
    claims = part(tokens.access, 1)
    assert chosen not in claims.values()
    assert claims["sid"] not in ("chosen-by-the-backend", part(victim.access, 1)["sid"])
    assert (claims["sub"], world.store.live(user)) == (user, 1)
    # Somebody else's session is neither taken over nor ended.
    assert admitted(world, victim)


def test_a_login_ends_the_session_that_it_comes_from(world: World) -> None:  # S12
    user = someone()
    first = sign_in(world, user)
    second = sign_in(world, user, bearing=first.access)
    assert_own_response(world.refused("/", first.access), 401, BLACKLISTED)
    assert_own_response(renew(world, first.refresh), 401, refresh_invalid("logged_out"))
    third = sign_in(world, user, bearing=expired(second))
    assert_own_response(world.refused("/", second.access), 401, BLACKLISTED)
    assert part(first.access, 1)["sid"] != part(second.access, 1)["sid"] != part(third.access, 1)["sid"]
    assert world.store.live(user) == 1
    # One that fails ends nothing, and neither does somebody else's.
    login(world, user, password="wrong", bearing=third.access)
    sign_in(world, bearing=third.access)
    assert admitted(world, third)


def test_a_login_makes_room_for_itself(store: Store, backend: Backend) -> None:  # S12, C-21
    with issuing(store, backend, device_limit="1", device_limit_policy="reject") as world:
        user = someone()
        first = sign_in(world, user)
        assert_own_response(login(world, user), 403, error_body("session_limit_exceeded"))
        assert admitted(world, first)
        assert admitted(world, sign_in(world, user, bearing=first.access))


# The OpenAPI document


def described(world: World) -> Described:
    return Described(json.loads(world.fetch("/_gatekeeper/openapi.json").body))


OWN = {("POST", f"{prefix}/{action}") for prefix in ("", "/auth") for action in ("login", "refresh", "logout")}


def test_the_document_describes_exactly_these_endpoints(world: World, undisguised: World) -> None:
    assert described(undisguised).operations.keys() == OWN
    document = described(world)
    OpenAPIV31SpecValidator(document.document).validate()
    assert document.operations.keys() > OWN
    ids = [operation["operationId"] for operation in document.operations.values()]
    assert len(set(ids)) == len(ids)
    for method, path in OWN:
        for response in document.operations[method, path]["responses"].values():
            (content,) = response["content"].values()
            examples = [each["value"] for each in content.get("examples", {}).values()]
            for example in [*examples, *([content["example"]] if "example" in content else [])]:
                OAS31Validator(document.schema(content["schema"])).validate(example)


def test_every_answer_is_as_the_document_describes_it(world: World, impatient: World) -> None:
    user = someone()
    first = login(world, user)
    tokens = pair(first)
    document = described(world)
    for path, answer, status in [
        ("/auth/login", first, 200),
        ("/login", login(world, user, password="wrong"), 401),
        ("/auth/login", post(world, "/auth/login", {}), 400),
        ("/login", post(world, "/login", {"username": "x" * 70_000}), 413),
        ("/auth/login", world.fetch("/auth/login", method="POST", headers=[FORM], body=b"a=b"), 415),
        ("/auth/login", login(impatient, user, password="broken"), 502),
        ("/auth/login", login(impatient, user, password="silent"), 504),
        ("/auth/refresh", renew(world, tokens.refresh), 200),
        ("/auth/refresh", renew(world, "x"), 401),
        ("/auth/refresh", post(world, "/auth/refresh", {}), 400),
        ("/auth/logout", post(world, "/auth/logout", bearing=tokens.access), 200),
        ("/logout", post(world, "/logout"), 401),
        ("/auth/refresh", renew(world, tokens.refresh), 401),
    ]:
        assert answer.status == status, (path, answer)
        document.validate(document.operations["POST", path], answer)
