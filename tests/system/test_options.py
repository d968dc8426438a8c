"""What settings change, through the whole sidecar."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path

import pytest

from tests.contracts.gate import SPOOFED, cookie
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import sidecar_app
from tests.servers import fetch
from tests.system.sidecar import Backend, Store, World, bearer, eventually, sidecar, someone, token
from tests.tokens import forge


def test_identity_headers_can_be_others(store: Store, backend: Backend) -> None:  # H01, H02
    names = "X-Auth-User=sub,X-Auth-Email=claim:email,X-Auth-Tenant=claim:tenant"
    with sidecar_app(store, backend, identity_headers=names) as world:
        user = someone()
        spoofed = [("x_auth_user", "1"), ("X-Auth-Tenant", "1"), ("X-Auth.Email", "1"), ("X-User-Id", "mine")]
        request = world.passed("/", token(user, email="zoë@example.com"), headers=spoofed)
        told = [(name, value) for name, value in request.headers if "auth" in name and name != "authorization"]
        assert told == [("x-auth-user", user), ("x-auth-email", "zo%C3%AB@example.com")]
        # What is no identity header any more is the client's own business.
        assert request.get_all("x-user-id") == ["mine"]


def test_the_backend_can_be_told_nothing(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, identity_headers="none") as world:
        request = world.passed("/", token(someone()))
        assert not [name for name, _ in request.headers if "user" in name or "session" in name]


def test_the_token_can_be_kept_from_the_backend(store: Store, backend: Backend) -> None:  # H19
    with sidecar_app(store, backend, forward_authorization="false") as world:
        user = someone()
        bearing = token(user)
        by_header = world.passed("/", bearing, headers=[("Cookie", f"a=b; access_token={bearing}")])
        assert (by_header.get_all("authorization"), by_header.get_all("cookie")) == ([], ["a=b"])
        by_cookie = world.passed("/", headers=[cookie(bearing), ("Authorization", "Basic eDp5")])
        assert (by_cookie.get_all("authorization"), by_cookie.get_all("cookie")) == (["Basic eDp5"], [])
        assert by_header.get_all("x-user-id") == by_cookie.get_all("x-user-id") == [user]
        assert bearing not in str(by_header) + str(by_cookie)


def test_only_trusted_proxies_are_believed(store: Store, backend: Backend) -> None:
    forwarded = [("X-Forwarded-For", "203.0.113.9, 198.51.100.7"), ("X-Forwarded-Proto", "https")]
    for trusted, address, chain, proto in (
        ("none", "127.0.0.1", "127.0.0.1", "http"),
        ("10.0.0.0/8", "127.0.0.1", "127.0.0.1", "http"),
        ("127.0.0.0/8", "198.51.100.7", "203.0.113.9, 198.51.100.7, 127.0.0.1", "https"),
        ("127.0.0.1,198.51.100.0/24", "203.0.113.9", "203.0.113.9, 198.51.100.7, 127.0.0.1", "https"),
    ):
        with sidecar_app(store, backend, trusted_proxies=trusted) as world:
            bearing = token(someone())
            request = world.passed("/", bearing, headers=forwarded)
            assert request.get_all("x-forwarded-for") == [chain]
            assert request.get_all("x-forwarded-proto") == [proto]
            assert f'"ip_address":"{address}"' in world.fetch("/sessions/me", bearing).body.decode()


def test_a_token_of_nobodys_session_can_be_refused(store: Store, backend: Backend) -> None:  # T19, T20
    with sidecar_app(store, backend, unknown_session="reject") as world:
        user = someone()
        answer = world.refused("/", token(user))
        assert_own_response(answer, 401, error_body("session_revoked_or_invalid"))
        # A session of another user's is no session of this one.
        with sidecar_app(store, backend) as adopting:
            sid = "shared-" + user
            adopting.passed("/", token(user, sid=sid))
            world.passed("/", token(user, sid=sid))
            foreign = world.refused("/", token(someone(), sid=sid))
            assert foreign.body == answer.body


def test_exempt_users_have_no_limits(store: Store, backend: Backend) -> None:
    user = someone()
    exempt = f"{user},role:service"
    with sidecar_app(store, backend, exempt_users=exempt, device_limit="1", idle_timeout="100ms") as world:
        for name, roles in ((user, []), (someone(), ["service"])):
            tokens = [token(name, roles=roles) for _ in range(5)]
            for bearing in tokens:
                world.passed("/", bearing)
            time.sleep(0.12)
            for bearing in tokens:
                world.passed("/", bearing)


def test_a_cookie_of_another_name(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, token_sources="cookie:jwt") as world:
        bearing = token(someone())
        world.passed("/", headers=[("Cookie", f"jwt={bearing}")])
        assert world.refused("/", headers=[cookie(bearing)]).status == 401
        assert world.refused("/", bearing).status == 401


def test_an_audience_holds_for_every_request(store: Store, backend: Backend) -> None:  # T16, T26
    """A token that one Gatekeeper has verified, and cached, is judged anew by another with another audience."""
    with sidecar_app(store, backend, jwt_audience="a") as one, sidecar_app(store, backend, jwt_audience="b") as other:
        user = someone()
        for_a, for_b = token(user, aud="a"), token(user, aud="b")
        for _ in range(2):
            one.passed("/", for_a)
            other.passed("/", for_b)
            assert_own_response(other.refused("/", for_a), 401, error_body("token_invalid"))
            assert_own_response(one.refused("/", for_b), 401, error_body("token_invalid"))


def test_the_leeway_is_the_one_configured(store: Store, backend: Backend) -> None:  # T15
    for leeway, status in (("0s", 401), ("30s", 401), ("120s", 200)):
        with sidecar_app(store, backend, jwt_leeway=leeway) as world:
            assert world.fetch("/", token(someone(), iat=int(time.time()) + 60)).status == status
            assert world.fetch("/", token(someone(), nbf=int(time.time()) + 60)).status == status


def test_two_secrets_overlap_in_a_rotation(store: Store, backend: Backend) -> None:  # C06
    with sidecar_app(store, backend, jwt_secret=f"{forge.OTHER_SECRET}\n{forge.SECRET}") as world:
        world.passed("/", token(someone()))
    with sidecar_app(store, backend, jwt_secret=forge.OTHER_SECRET) as world:
        assert_own_response(world.refused("/", token(someone())), 401, error_body("token_invalid"))


def test_login_paths_can_be_others(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, login_paths="PUT /in/*", logout_paths="none", refresh_paths="/renew") as world:
        spoofed = [(name, "1") for name in SPOOFED]
        for method, path in (("PUT", "/in/x"), ("POST", "/renew")):
            request = world.passed(path, method=method, headers=spoofed)
            assert not [name for name, _ in request.headers if "user" in name]
        for method, path in (("POST", "/in/x"), ("POST", "/auth/login"), ("POST", "/logout"), ("GET", "/renew")):
            assert world.refused(path, method=method).status == 401


def test_no_dialect_at_all(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, dialects="none") as world:
        bearing = token(someone())
        for target in ("/api/sessions", "/sessions/me", "//api/sessions"):
            assert world.refused(target).status == 401
            assert world.passed(target, bearing).target == target


def test_key_prefixes_keep_two_gatekeepers_apart(store: Store, backend: Backend) -> None:
    with sidecar_app(store, backend, key_prefix="one:") as one, sidecar_app(store, backend, key_prefix="two:") as two:
        user = someone()
        bearing = token(user)
        one.fetch("/api/sessions", bearing, method="DELETE")
        assert one.refused("/", bearing).status == 401
        two.passed("/", bearing)
        assert (store.live(user, "one:"), store.live(user, "two:"), store.live(user)) == (0, 1, 0)


@pytest.mark.parametrize("user", ["a:b", "{x}", "*", "a b", "🦊", "ü" * 256, "%7B", "}{", "gk:{1}"])
def test_any_user_name_is_one_user_alone(world: World, user: str) -> None:  # S29
    name = user if len(user) == 256 else f"{user}{someone()}"
    bearing = token(name)
    told = world.passed("/", bearing).get_all("x-session-id")
    assert [str(number) for number in world.session_ids(bearing)] == told


def test_unix_sockets_on_both_sides(store: Store) -> None:
    with tempfile.TemporaryDirectory() as name, Backend(path=Path(name) / "backend.sock") as backend:
        front = Path(name) / "front.sock"
        with sidecar(backend.url, redis_url=store.url, listen=f"unix:{front}") as gate:
            assert gate.url == f"unix:{front}"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(front))
                name_, value = bearer(token(someone()))
                connection.sendall(
                    f"GET / HTTP/1.1\r\nHost: a\r\n{name_}: {value}\r\nConnection: close\r\n\r\n".encode()
                )
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            (request,) = backend.reached
            assert request.get_all("x-forwarded-for") == []
            line = eventually(lambda: gate.access)[0]
            assert line["client_ip"] == "unix:"
            assert fetch(gate.ops, "GET", "/readyz").status == 200
