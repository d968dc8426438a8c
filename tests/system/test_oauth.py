"""The standards beside the dialects: token revocation (RFC 7009), token introspection (RFC 7662), and the receiver of
OpenID Connect Back-Channel Logout 1.0; where the backend issues the tokens and where Gatekeeper does."""

from __future__ import annotations

import base64
import json
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.contracts.dialect import JSON
from tests.contracts.responses import assert_own_response, assert_says_what_is_accepted, error_body
from tests.middleware.host import sidecar_app
from tests.servers import ClientResponse, RawConnection, RawRequest
from tests.system.sidecar import Backend, Store, World, eventually, external_store, someone, token
from tests.system.test_issuing import (
    BLACKLISTED,
    CHECK,
    FORM,
    Pair,
    backend_script,
    described,
    legacy_script,
    login,
    part,
    refresh_invalid,
    renew,
)
from tests.system.test_issuing import issuing as issuing_app
from tests.system.test_real_logins import next_second
from tests.tokens import forge
from tests.tokens.login_server import http

pytestmark = pytest.mark.slow

REVOKE, INTROSPECT, LOGOUT = "/oauth/revoke", "/oauth/introspect", "/_gatekeeper/backchannel-logout"
ISSUER = "https://id.example.com/"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
# What `openssl rand -base64 33` makes, with all that a form must encode.
CLIENT, SECRET = "billing", "r4+bQ/7nT0+xY2sV9kLm3cWfZ1hJ8pDqA+="
SETTINGS = {"introspection_clients": f"other:{forge.OTHER_SECRET}\n{CLIENT}:{SECRET}", "backchannel_issuer": ISSUER}
INACTIVE = b'{"active":false}'
NOT_VALID = b'{"detail":"The logout token is not valid","code":"bad_request"}'
USED = b'{"detail":"The logout token has been used","code":"bad_request"}'
UNAVAILABLE = "Session store is unavailable, try again"

# Whose key set is at /jwks.json.
PROVIDER = ed25519.Ed25519PrivateKey.generate()


async def script(connection: RawConnection, request: RawRequest) -> None:
    """The backend of both modes, and the provider's key set."""
    if request.target == CHECK.encode():
        await backend_script(connection, request)
    elif request.target == b"/jwks.json":
        await connection.write(http({"keys": [forge.jwk(PROVIDER, kid="a", use="sig")]}))
    elif request.target.startswith(b"/of/"):
        # /of/<sid>/auth/login: the token says of which sign-in it is; one of a refresh does not.
        user, sid = json.loads(request.body)["username"], request.target.decode().split("/")[2]
        tokens = {"access_token": token(user, sid=sid), "refresh_token": token(user, token_type="refresh")}
        await connection.write(http(tokens, "200 OK", "Content-Type: application/json"))
    else:
        await legacy_script(connection, request)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(script) as running:
        yield running


@pytest.fixture(scope="module")
def observing(store: Store, backend: Backend) -> Iterator[World]:
    with sidecar_app(store, backend, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def issuing(store: Store, backend: Backend) -> Iterator[World]:
    with issuing_app(store, backend, **SETTINGS) as running:
        yield running


@pytest.fixture(params=["observing", "issuing"])
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.getfixturevalue(request.param)
    return found


# A client of OAuth


def basic(name: str, secret: str) -> tuple[str, str]:
    return ("Authorization", "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode())


# RFC 6749 section 2.3.1: both are encoded as in a form before.
AS_CLIENT = basic(CLIENT, quote(SECRET, safe=""))


def form(
    world: World, path: str, fields: Any, headers: Iterable[tuple[str, str]] = (AS_CLIENT,), method: str = "POST"
) -> ClientResponse:
    return world.fetch(path, method=method, headers=[FORM, *headers], body=urlencode(fields).encode())


def introspect(world: World, token: str, **more: str) -> ClientResponse:
    return form(world, INTROSPECT, {"token": token, **more})


def revoke(world: World, token: str, **more: str) -> None:
    assert_own_response(form(world, REVOKE, {"token": token, **more}), 200, b"{}")


def sign_in(world: World, user: str | None = None) -> Pair:
    """Tokens of a login, whoever issues them; the session is open."""
    found = json.loads(login(world, user or someone()).body)
    return Pair(found["access_token"], found["refresh_token"])


def is_active(world: World, token: str) -> bool:
    answer = introspect(world, token)
    assert_own_response(answer, 200, answer.body)
    found: bool = json.loads(answer.body)["active"]
    assert found or answer.body == INACTIVE
    return found


def oauth_error(code: str, description: str) -> bytes:
    return json.dumps({"error": code, "error_description": description}, separators=(",", ":")).encode()


NO_CLIENT = oauth_error("invalid_client", "The client is unknown, or its secret is wrong")


# Who may ask


def test_none_of_it_is_there_by_default(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend) as plain:
        bearing = token(someone())
        for path in (REVOKE, INTROSPECT):
            assert_own_response(plain.refused(path, method="POST"), 401, error_body("token_missing"))
            assert plain.passed(path, bearing, method="POST").target == path
        answer = plain.refused(LOGOUT, bearing, method="POST")
        assert_own_response(answer, 404, b'{"detail":"Not found","code":"not_found"}')


@pytest.mark.parametrize("path", [REVOKE, INTROSPECT])
def test_a_client_says_who_it_is_by_basic_or_in_the_form(observing: World, path: str) -> None:
    tokens = sign_in(observing)
    fields = {"token": tokens.access[:-1]}
    good = {"client_id": CLIENT, "client_secret": SECRET}
    for headers, more in (
        ([AS_CLIENT], {}),
        ([("authorization", AS_CLIENT[1].replace("Basic", "bAsIc"))], {}),
        ([AS_CLIENT], {"client_id": CLIENT}),
        ([basic("other", forge.OTHER_SECRET)], {}),
        ([], good),
    ):
        assert form(observing, path, fields | more, headers).status == 200
        assert form(observing, f"{path}/", fields | more, headers).status == 200
    for headers, more in (
        ([], {}),
        ([basic(CLIENT, forge.OTHER_SECRET)], {}),
        ([basic("other", quote(SECRET, safe=""))], {}),
        ([basic("nobody", quote(SECRET, safe=""))], {}),
        ([basic("", "")], {}),
        ([basic(CLIENT, "")], {}),
        ([("Authorization", "Basic")], {}),
        ([("Authorization", "Basic !")], {}),
        ([("Authorization", "Basic " + base64.b64encode(b"\xff:\xff").decode())], {}),
        ([("Authorization", "Basic " + base64.b64encode(CLIENT.encode()).decode())], {}),
        ([("Authorization", f"Bearer {tokens.access}")], {}),
        ([AS_CLIENT, AS_CLIENT], {}),
        # By one method, not by two.
        ([AS_CLIENT], good),
        ([], good | {"client_secret": SECRET.lower()}),
        ([], {"client_id": CLIENT}),
        ([], {"client_secret": SECRET}),
        ([("Cookie", f"access_token={tokens.access}")], {}),
    ):
        answer = form(observing, path, fields | more, headers)
        assert_own_response(answer, 401, NO_CLIENT)
        assert answer.get_all("www-authenticate") == ['Basic realm="gatekeeper", charset="UTF-8"']
    twice = [*fields.items(), *good.items(), ("client_id", CLIENT)]
    assert_own_response(form(observing, path, twice, []), 401, NO_CLIENT)
    assert_own_response(form(observing, path, {"token": tokens.access}, []), 401, NO_CLIENT)
    # Nothing ended, and what is nobody's secret is in no token's place.
    assert is_active(observing, tokens.access)
    assert observing.fetch("/", tokens.access).status == 200


@pytest.mark.parametrize("path", [REVOKE, INTROSPECT])
def test_what_is_not_one_token_in_a_form_is_refused(observing: World, path: str) -> None:
    tokens = sign_in(observing)
    for fields in ({}, {"token": ""}, [("token", tokens.access), ("token", tokens.access)], {"Token": tokens.access}):
        answer = form(observing, path, fields)
        assert_own_response(answer, 400, oauth_error("invalid_request", "token must be given once"))
    body = urlencode({"token": tokens.access}).encode()
    for headers, content, status in [
        ([JSON], json.dumps({"token": tokens.access}).encode(), 415),
        ([("Content-Type", "multipart/form-data; boundary=x")], body, 415),
        ([FORM, ("Content-Encoding", "gzip")], body, 415),
        ([FORM], body + b"&a=" + b"x" * 65_536, 413),
        ([FORM], b"token=\xff", 400),
    ]:
        answer = observing.fetch(path, method="POST", headers=[AS_CLIENT, *headers], body=content)
        assert (answer.status, json.loads(answer.body)["error"]) == (status, "invalid_request")
        assert list(json.loads(answer.body)) == ["error", "error_description"]
        if status == 415:
            assert_says_what_is_accepted(answer, headers, "application/x-www-form-urlencoded")
    # By another method it is not ours.
    assert_own_response(observing.refused(path), 401, error_body("token_missing"))
    assert observing.passed(f"{path}?token=1", tokens.access).target == f"{path}?token=1"


# Introspection


def test_a_token_of_a_live_session_is_active_and_says_whose_it_is(world: World) -> None:
    user = someone()
    tokens = sign_in(world, user)
    activity = world.store.last_activity(user)
    said = part(tokens.access, 1)
    told = {name: said[name] for name in ("exp", "iat", "sub", "aud", "iss", "jti") if name in said}
    for hint in ({}, {"token_type_hint": "access_token"}, {"token_type_hint": "refresh_token"}):
        answer = introspect(world, tokens.access, **hint)
        assert json.loads(answer.body) == {"active": True, "token_type": "Bearer"} | told
        assert_own_response(answer, 200, answer.body)
    refresh = json.loads(introspect(world, tokens.refresh).body)
    assert refresh.keys() == {"active", "token_type", "sub", "exp"}
    assert (refresh["active"], refresh["token_type"], refresh["sub"]) == (True, "refresh_token", user)
    assert abs(refresh["exp"] - time.time() - 24 * 3600) < 60
    # Whoever asks is not its user.
    assert (world.store.last_activity(user), world.store.live(user)) == (activity, 1)


def test_what_is_no_good_token_is_inactive_and_nothing_more(world: World) -> None:
    user = someone()
    now = int(time.time())
    for bad in (
        "x",
        "a.b.c",
        "x" * 20_000,
        "é",
        token(user, exp=now - 60, iat=now - 600),
        token(user, exp=...),
        token(user, token_type="refresh"),
        forge.token(forge.OTHER_SECRET, claims={"sub": user, "iat": now, "exp": now + 60}),
        logout_token(sub=user),
    ):
        assert_own_response(introspect(world, bad), 200, INACTIVE)
    assert world.store.live(user) == 0


ENDS: dict[str, Callable[[World, Pair], ClientResponse]] = {
    "a logout": lambda world, tokens: world.fetch("/sessions/logout", tokens.access, method="DELETE"),
    "a revocation": lambda world, tokens: world.fetch(
        f"/sessions/{world.session_ids(tokens.access)[0]}", tokens.access, method="DELETE"
    ),
    "the end of all": lambda world, tokens: world.fetch("/sessions/all", tokens.access, method="DELETE"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_token_of_a_session_that_is_over_is_inactive(world: World, end: str) -> None:
    tokens = sign_in(world)
    assert is_active(world, tokens.access)
    assert is_active(world, tokens.refresh)
    assert ENDS[end](world, tokens).status == 200
    assert not is_active(world, tokens.access)
    assert not is_active(world, tokens.refresh)


def test_a_token_that_nobody_has_used_is_active_where_it_may_open_a_session(
    observing: World, issuing: World, store: Store, backend: Backend
) -> None:
    user = someone()
    unseen = token(user)
    assert is_active(observing, unseen)
    assert observing.store.live(user) == 0
    assert not is_active(issuing, unseen)
    with sidecar_app(store, backend, unknown_session="reject", **SETTINGS) as rejecting:
        assert not is_active(rejecting, unseen)
    # After the end of all, one that is older may not.
    assert observing.fetch("/sessions/all", token(user), method="DELETE").status == 200
    assert not is_active(observing, unseen)
    assert is_active(observing, token(user, iat=int(time.time()) + 2))


def test_introspection_says_what_the_gate_would(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, idle_timeout="3s", device_limit="1", **SETTINGS) as world:
        user = someone()
        first, second = sign_in(world, user), sign_in(world, user)
        assert [is_active(world, each.access) for each in (first, second)] == [False, True]
        time.sleep(3.05)
        assert not is_active(world, second.access)
        assert not is_active(world, second.refresh)


def test_a_used_refresh_token_is_inactive(issuing: World) -> None:  # S06
    first = sign_in(issuing)
    second = Pair(*list(json.loads(renew(issuing, first.refresh).body).values())[:2])
    third = Pair(*list(json.loads(renew(issuing, second.refresh).body).values())[:2])
    # Using it would end the session; asking what it is does not.
    assert not is_active(issuing, first.refresh)
    assert is_active(issuing, third.refresh)
    assert is_active(issuing, third.access)
    assert is_active(issuing, first.access)


# Revocation


def test_a_revoked_token_ends_its_session(world: World) -> None:  # rule 4.10
    for name in ("access", "refresh"):
        for hint in ({}, {"token_type_hint": "access_token"}, {"token_type_hint": "no such type"}):
            user = someone()
            tokens, other = sign_in(world, user), sign_in(world, user)
            for _ in range(2):
                revoke(world, getattr(tokens, name), **hint)
            assert_own_response(world.refused("/", tokens.access), 401, BLACKLISTED)
            refused = renew(world, tokens.refresh)
            assert (refused.status, json.loads(refused.body)["reason"]) == (401, "logged_out")
            assert not is_active(world, tokens.access)
            assert is_active(world, other.access)


def test_an_expired_token_can_be_revoked_too(issuing: World) -> None:
    tokens = sign_in(issuing)
    now = int(time.time())
    late = part(tokens.access, 1) | {"iat": now - 600, "exp": now - 60}
    revoke(issuing, forge.hs({"alg": "HS256", "typ": "at+jwt"}, late))
    assert_own_response(issuing.refused("/", tokens.access), 401, BLACKLISTED)
    assert_own_response(renew(issuing, tokens.refresh), 401, refresh_invalid("logged_out"))


def test_a_token_that_names_nothing_is_no_fault(world: World) -> None:  # RFC 7009 section 2.2
    tokens = sign_in(world)
    foreign = forge.hs({"alg": "HS256"}, part(tokens.access, 1), forge.OTHER_SECRET)
    for nothing in ("x", "a.b.c", "é", "x" * 20_000, foreign, tokens.refresh[:-1], logout_token(sub="1")):
        revoke(world, nothing)
    assert world.fetch("/", tokens.access).status == 200


def test_a_token_revoked_before_its_first_use_never_opens_a_session(observing: World) -> None:
    user = someone()
    unseen = token(user)
    revoke(observing, unseen)
    assert_own_response(observing.refused("/", unseen), 401, BLACKLISTED)
    assert observing.store.live(user) == 0


def test_without_the_store_nothing_is_known_and_nothing_revoked(backend: Backend) -> None:  # S15
    with external_store() as store, sidecar_app(store, backend, store_timeout="2s", **SETTINGS) as world:
        tokens = sign_in(world)
        store.signal(signal.SIGSTOP)
        try:
            for path, sent in ((REVOKE, tokens.refresh), (INTROSPECT, tokens.access)):
                answer = form(world, path, {"token": sent})
                assert_own_response(answer, 503, oauth_error("temporarily_unavailable", UNAVAILABLE))
        finally:
            store.signal(signal.SIGCONT)
        eventually(lambda: world.fetch("/", token(someone())).status == 200)
        revoke(world, tokens.refresh)
        assert_own_response(world.refused("/", tokens.access), 401, BLACKLISTED)


# Back-channel logout


def logout_token(*, key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A good logout token of the provider, by HMAC or by its `key`; `...` takes a claim away."""
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": "app", "iat": now, "exp": now + 120, "jti": uuid.uuid4().hex, "events": {EVENT: {}}}
    payload = {name: value for name, value in (usual | claims).items() if value is not ...}
    if key is not None:
        return forge.signed_by(key, header or {"alg": "EdDSA", "typ": "logout+jwt", "kid": "a"}, payload)
    return forge.hs(header or {"alg": "HS256", "typ": "logout+jwt"}, payload)


def told(world: World, token: str) -> ClientResponse:
    """The answer to the provider, which identifies itself by the token alone."""
    return form(world, LOGOUT, {"logout_token": token}, ())


def by_provider(user: str, sid: str, signed_in_ago: int | None = None, *, issued_ago: int = 0, key: Any = None) -> str:
    """An access token of the provider: of the sign-in `sid`, and of one moment of it where that is told."""
    now = int(time.time())
    claims = {"sub": user, "sid": sid, "iat": now - issued_ago, "exp": now + 600, "jti": uuid.uuid4().hex}
    if signed_in_ago is not None:
        claims["auth_time"] = now - signed_in_ago
    if key is not None:
        return forge.signed_by(key, {"alg": "EdDSA", "kid": "a"}, claims)
    return forge.hs({"alg": "HS256"}, claims)


@pytest.mark.parametrize("auth_time", [None, 100], ids=["sid", "sid and auth_time"])
@pytest.mark.parametrize("names_the_user", [False, True], ids=["alone", "with sub"])
def test_a_sid_ends_its_sessions_and_no_others(observing: World, auth_time: int | None, names_the_user: bool) -> None:
    user, sid = someone(), uuid.uuid4().hex
    seen, same, elsewhere = by_provider(user, sid, auth_time), by_provider(user, sid, auth_time), token(user)
    for bearing in (seen, elsewhere):
        observing.passed("/", bearing)
    claims: dict[str, Any] = {"sid": sid} | ({"sub": user} if names_the_user else {})
    assert_own_response(told(observing, logout_token(**claims)), 200, b"{}")
    # Of that sign-in nothing counts any more, what was never seen neither; another one of the user is not concerned.
    for bearing in (seen, same, by_provider(user, sid, auth_time)):
        assert_own_response(observing.refused("/", bearing), 401, BLACKLISTED)
        assert not is_active(observing, bearing)
    observing.passed("/", elsewhere)
    assert observing.store.live(user) == 1


def test_a_sid_ends_every_moment_of_a_sign_in_and_not_the_next(observing: World) -> None:
    user, sid = someone(), uuid.uuid4().hex
    first, second = by_provider(user, sid, 300), by_provider(user, sid, 200)
    unseen = by_provider(user, sid, 100)
    for bearing in (first, second):
        observing.passed("/", bearing)
    assert observing.store.live(user) == 2
    assert told(observing, logout_token(sid=sid)).status == 200
    for bearing in (first, second, unseen):
        assert_own_response(observing.refused("/", bearing), 401, BLACKLISTED)
    assert observing.store.live(user) == 0
    # Signed in again, as the provider's clock shows: under the same `sid`, at a later moment.
    again = by_provider(user, sid, -2, issued_ago=-2)
    observing.passed("/", again)
    assert observing.store.live(user) == 1


def test_what_introspection_says_of_a_sign_in_that_is_over_is_what_the_gate_says(observing: World) -> None:
    user, sid = someone(), uuid.uuid4().hex
    seen, unseen = by_provider(user, sid, 300), by_provider(user, sid, 200)
    observing.passed("/", seen)
    assert told(observing, logout_token(sid=sid)).status == 200
    assert not is_active(observing, unseen)
    assert_own_response(observing.refused("/", unseen), 401, BLACKLISTED)


def test_a_second_word_on_the_same_sid_counts_as_the_first(observing: World) -> None:
    """A provider may keep a `sid` over several sign-ins; each sign-out is over what was before it."""
    user, sid = someone(), uuid.uuid4().hex
    observing.passed("/", by_provider(user, sid, 300))
    assert told(observing, logout_token(sid=sid)).status == 200
    # The next sign-in is of a later second.
    next_second()
    seen, unseen = by_provider(user, sid, 0), by_provider(user, sid, 1)
    observing.passed("/", seen)
    assert told(observing, logout_token(sid=sid)).status == 200
    for bearing in (seen, unseen):
        assert_own_response(observing.refused("/", bearing), 401, BLACKLISTED)


def test_a_session_is_of_the_sign_in_that_one_of_its_tokens_names(observing: World) -> None:
    user, sid = someone(), uuid.uuid4().hex
    members = json.dumps({"username": user, "password": "x"}).encode()
    answer = observing.fetch(f"/of/{sid}/auth/login", method="POST", headers=[JSON], body=members)
    first = json.loads(answer.body)
    second = json.loads(renew(observing, first["refresh_token"]).body)
    assert (observing.store.live(user), "sid" in part(second["access_token"], 1)) == (1, False)
    assert_own_response(told(observing, logout_token(sid=sid)), 200, b"{}")
    for each in (first, second):
        assert_own_response(observing.refused("/", each["access_token"]), 401, BLACKLISTED)
    assert observing.store.live(user) == 0


def test_a_user_who_is_named_signs_out_of_a_sign_in_that_was_never_seen(observing: World) -> None:
    user, sid = someone(), uuid.uuid4().hex
    assert told(observing, logout_token(sub=user, sid=sid)).status == 200
    for auth_time in (None, 100):
        assert_own_response(observing.refused("/", by_provider(user, sid, auth_time)), 401, BLACKLISTED)


def test_a_sub_ends_every_session_of_the_user(world: World) -> None:
    user = someone()
    tokens, other = [sign_in(world, user) for _ in range(2)], sign_in(world)
    assert_own_response(told(world, logout_token(sub=user)), 200, b"{}")
    for each in tokens:
        assert_own_response(world.refused("/", each.access), 401, BLACKLISTED)
        refused = renew(world, each.refresh)
        assert (refused.status, json.loads(refused.body)["reason"]) == (401, "logged_out")
    assert world.store.live(user) == 0
    assert world.fetch("/", other.access).status == 200
    # A new sign-in is one.
    assert world.fetch("/", sign_in(world, user).access).status == 200


def test_a_token_of_before_the_end_of_all_opens_nothing(observing: World) -> None:
    user = someone()
    unseen = token(user)
    assert told(observing, logout_token(sub=user)).status == 200
    assert_own_response(observing.refused("/", unseen), 401, error_body("session_revoked_or_invalid"))
    observing.passed("/", token(user, iat=int(time.time()) + 2))


def test_the_keys_may_be_the_providers_key_set(store: Store, backend: Backend) -> None:
    settings = {"jwks_url": f"{backend.url}/jwks.json", "jwt_audience": "app", **SETTINGS}
    with sidecar_app(store, backend, **settings) as world:
        user, sid = someone(), uuid.uuid4().hex
        now = int(time.time())
        claims = {"sub": user, "sid": sid, "aud": "app", "iat": now, "exp": now + 600}
        access = forge.signed_by(PROVIDER, {"alg": "EdDSA", "kid": "a"}, claims)
        eventually(lambda: world.fetch("/", access).status == 200)
        stranger = ed25519.Ed25519PrivateKey.generate()
        for bad in (
            logout_token(key=stranger, sid=sid),
            logout_token(key=PROVIDER, sid=sid, aud="another app"),
            logout_token(key=PROVIDER, sid=sid, header={"alg": "EdDSA", "typ": "logout+jwt", "kid": "b"}),
            logout_token(sid=sid),
        ):
            assert_own_response(told(world, bad), 400, NOT_VALID)
        world.passed("/", access)
        assert_own_response(told(world, logout_token(key=PROVIDER, sid=sid, aud=["app", "x"])), 200, b"{}")
        assert_own_response(world.refused("/", access), 401, BLACKLISTED)


def test_a_logout_token_counts_once(observing: World) -> None:
    user = someone()
    word = logout_token(sub=user)
    assert told(observing, word).status == 200
    next_second()
    later = token(user)
    observing.passed("/", later)
    assert_own_response(told(observing, word), 400, USED)
    observing.passed("/", later)


def bad_logout_tokens(user: str) -> dict[str, str]:
    now = int(time.time())
    header = {"alg": "HS256", "typ": "logout+jwt"}
    good = logout_token(sub=user)
    unsigned = {"alg": "none", "typ": "logout+jwt"}
    return {
        "issuer": logout_token(sub=user, iss="https://evil.example/"),
        "no issuer": logout_token(sub=user, iss=...),
        "nonce": logout_token(sub=user, nonce="1"),
        "no event": logout_token(sub=user, events=...),
        "another event": logout_token(sub=user, events={"http://schemas.openid.net/event/other": {}}),
        "event that is no object": logout_token(sub=user, events={EVENT: True}),
        "expired": logout_token(sub=user, iat=now - 600, exp=now - 60),
        "no exp, and over two minutes old": logout_token(sub=user, iat=now - 300, exp=...),
        "neither exp nor iat": logout_token(sub=user, iat=..., exp=...),
        "not yet": logout_token(sub=user, iat=now + 600),
        "no iat": logout_token(sub=user, iat=...),
        "no jti": logout_token(sub=user, jti=...),
        "nobody": logout_token(),
        "another key": forge.hs(header, part(good, 1), forge.OTHER_SECRET),
        "unsigned": forge.hs(unsigned, part(good, 1)).rpartition(".")[0] + ".",
        "typ of an access token": logout_token(sub=user, header={"alg": "HS256", "typ": "at+jwt"}),
        "access token": token(user),
        "access token as logout token": logout_token(sub=user, events=..., scope="read"),
        "id token": logout_token(sub=user, nonce="1", events=..., header={"alg": "HS256", "typ": "JWT"}),
        "garbage": "x",
    }


@pytest.mark.parametrize("fault", bad_logout_tokens("1"))
def test_a_logout_token_that_is_not_as_it_must_be_ends_nothing(observing: World, fault: str) -> None:
    user = someone()
    bearing = token(user)
    observing.passed("/", bearing)
    assert_own_response(told(observing, bad_logout_tokens(user)[fault]), 400, NOT_VALID)
    observing.passed("/", bearing)


def test_what_is_not_one_logout_token_in_a_form_is_refused(observing: World) -> None:
    user = someone()
    bearing, word = token(user), logout_token(sub=user)
    observing.passed("/", bearing)
    once = b'{"detail":"logout_token must be given once","code":"bad_request"}'
    for fields in ({}, {"logout_token": ""}, {"token": word}, [("logout_token", word), ("logout_token", word)]):
        assert_own_response(form(observing, LOGOUT, fields, ()), 400, once)
    for headers, body, status, code in [
        ([JSON], json.dumps({"logout_token": word}).encode(), 415, "unsupported_media_type"),
        ([], urlencode({"logout_token": word}).encode(), 415, "unsupported_media_type"),
        ([FORM], b"logout_token=" + b"x" * 65_536, 413, "body_too_large"),
    ]:
        answer = observing.fetch(LOGOUT, method="POST", headers=headers, body=body)
        assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
        if status == 415:
            assert_says_what_is_accepted(answer, headers, "application/x-www-form-urlencoded")
    for method in ("GET", "PUT", "DELETE"):
        answer = observing.refused(f"{LOGOUT}?logout_token={word}", bearing, method=method)
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "not_found")
    observing.passed("/", bearing)
    # None of these was a use of it.
    assert told(observing, word).status == 200


def test_a_logout_token_is_no_access_token(world: World) -> None:
    user = someone()
    for header in ({"alg": "HS256", "typ": "logout+jwt"}, {"alg": "HS256", "typ": "JWT"}, {"alg": "HS256"}):
        sent = logout_token(sub=user, sid=uuid.uuid4().hex, header=header)
        assert_own_response(world.refused("/", sent), 401, error_body("token_invalid"))
    assert world.store.live(user) == 0


def allow(store: Store, *commands: str) -> None:
    """Which commands everybody may give: `-del` not, `+del` again."""
    client: Any = store.client
    client.execute_command("ACL", "SETUSER", "default", *commands)


def test_a_word_that_could_not_be_heard_may_be_said_again(backend: Backend) -> None:  # S15, rule 4.8
    with external_store() as store, sidecar_app(store, backend, store_timeout="2s", **SETTINGS) as world:
        user = someone()
        bearing, word = token(user), logout_token(sub=user)
        world.passed("/", bearing)
        # A store that takes commands and answers none: what it does with them later, nobody has been told.
        store.signal(signal.SIGSTOP)
        try:
            assert_own_response(told(world, word), 503, error_body("store_unavailable"))
        finally:
            store.signal(signal.SIGCONT)
        eventually(lambda: world.fetch("/", token(someone())).status == 200)
        assert_own_response(told(world, word), 200, b"{}")
        assert_own_response(world.refused("/", bearing), 401, BLACKLISTED)
        # One that takes some commands only.
        user = someone()
        bearing, word = token(user), logout_token(sub=user)
        world.passed("/", bearing)
        allow(store, "-evalsha", "-eval", "-del")
        assert_own_response(told(world, word), 503, error_body("store_unavailable"))
        allow(store, "+evalsha", "+eval", "+del")
        assert_own_response(told(world, word), 200, b"{}")
        assert_own_response(world.refused("/", bearing), 401, BLACKLISTED)
        # One that is gone, and comes back empty.
        word = logout_token(sub=user)
        store.kill()
        assert_own_response(told(world, word), 503, error_body("store_unavailable"))
        store.start()
        eventually(lambda: told(world, word).status == 200)


# The OpenAPI document


def test_the_document_describes_these_endpoints_and_their_answers(world: World) -> None:
    document = described(world)
    OpenAPIV31SpecValidator(document.document).validate()
    assert {("POST", REVOKE), ("POST", INTROSPECT), ("POST", LOGOUT)} <= document.operations.keys()
    access, refresh = sign_in(world)

    def without_a_form(path: str) -> ClientResponse:
        return world.fetch(path, method="POST", headers=[JSON, AS_CLIENT], body=b"{}")

    for path, answer, status in [
        (INTROSPECT, introspect(world, access), 200),
        (INTROSPECT, introspect(world, refresh), 200),
        (INTROSPECT, introspect(world, "x"), 200),
        (INTROSPECT, form(world, INTROSPECT, {"token": "x"}, ()), 401),
        (INTROSPECT, form(world, INTROSPECT, {}), 400),
        (INTROSPECT, without_a_form(INTROSPECT), 415),
        (INTROSPECT, form(world, INTROSPECT, {"token": "x" * 70_000}), 413),
        (LOGOUT, told(world, "x"), 400),
        (LOGOUT, told(world, logout_token(sub=someone())), 200),
        (LOGOUT, without_a_form(LOGOUT), 415),
        (LOGOUT, told(world, "x" * 70_000), 413),
        (REVOKE, form(world, REVOKE, {"token": "x"}, ()), 401),
        (REVOKE, form(world, REVOKE, {}), 400),
        (REVOKE, without_a_form(REVOKE), 415),
        (REVOKE, form(world, REVOKE, {"token": "x" * 70_000}), 413),
        (REVOKE, form(world, REVOKE, {"token": access}), 200),
    ]:
        assert answer.status == status, (path, answer)
        document.validate(document.operations["POST", path], answer)
