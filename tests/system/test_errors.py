"""Every code that this release can give, with its status, body and headers, in each `ERROR_DIALECT` (rule 6.1)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from tests.contracts.gate import cookie
from tests.contracts.responses import TABLE, assert_own_response, error_body
from tests.middleware.host import sidecar_app
from tests.servers import ClientResponse, RawConnection, RawRequest
from tests.system.sidecar import Backend, Store, World, eventually, masked, someone, token

DIALECTS = ["express", "fastapi", "mockstream"]


@pytest.fixture(scope="module", params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def strict(store: Store, backend: Backend, dialect: str) -> Iterator[World]:
    """One device at a time."""
    with sidecar_app(store, backend, error_dialect=dialect, device_limit="1", device_limit_policy="reject") as made:
        yield made


def assert_error(answer: ClientResponse, dialect: str, code: str, reason: str | None = None, detail: str = "") -> None:
    """The answer in the shape of `dialect`, byte for byte but for its times and ids."""
    status = answer.status if code not in TABLE else TABLE[code][0]
    detail = detail or TABLE[code][1]
    if dialect == "express":
        unauthorized = ("UNAUTHORIZED", "Invalid or missing authentication token")
        shown_code, details = unauthorized if status == 401 else (code.upper(), detail)
        expected = {
            "success": False,
            "message": HTTPStatus(status).phrase,
            "error": {"code": shown_code, "details": details},
            "timestamp": "<milliseconds>",
            "requestId": "<uuid>",
        }
        assert masked(answer.body) == json.dumps(expected, separators=(",", ":")).encode()
        assert_own_response(answer, status, answer.body)
    elif code in TABLE:
        assert_own_response(answer, status, error_body(code, reason))
    else:
        expected = {"detail": detail, "code": code}
        assert_own_response(answer, status, json.dumps(expected, separators=(",", ":")).encode())
    if status == 401:
        challenge = f'Bearer error="invalid_token", error_description="{detail}"'
        assert answer.get_all("www-authenticate") == ["Bearer" if code == "token_missing" else challenge]


def test_tokens_that_are_refused(strict: World, dialect: str) -> None:
    assert_error(strict.refused("/x"), dialect, "token_missing")
    assert_error(strict.refused("/x", "x"), dialect, "token_invalid")
    assert_error(strict.refused("/x", token(someone(), exp=int(time.time()) - 11)), dialect, "token_expired")


def test_sessions_that_have_ended(strict: World, dialect: str) -> None:
    logged_out, deleted = token(someone()), token(someone())
    strict.fetch("/sessions/logout", logged_out, method="DELETE")
    assert_error(strict.refused("/x", logged_out), dialect, "access_token_blacklisted", "logged_out")
    strict.fetch("/api/sessions", deleted, method="DELETE")
    assert_error(strict.refused("/x", deleted), dialect, "session_revoked_or_invalid", "revoked_by_user")


def test_a_sign_in_too_many(strict: World, dialect: str) -> None:  # C-12, C-21
    user = someone()
    first = token(user)
    strict.passed("/x", first)
    assert_error(strict.refused("/x", token(user)), dialect, "session_limit_exceeded")
    strict.passed("/x", first)


def test_idle_sessions(store: Store, backend: Backend, dialect: str) -> None:  # C-11, C-20
    with sidecar_app(store, backend, error_dialect=dialect, idle_timeout="100ms") as world:
        bearing = token(someone())
        world.passed("/x", bearing)
        time.sleep(0.15)
        assert_error(world.refused("/x", bearing), dialect, "session_inactivity_timeout", "idle")
        # Asking again does not wake it.
        assert_error(world.refused("/x", bearing), dialect, "session_inactivity_timeout", "idle")


def test_sessions_at_the_end_of_their_life(store: Store, backend: Backend, dialect: str) -> None:  # B-12, T14
    with sidecar_app(store, backend, error_dialect=dialect, session_ttl="3s") as world:
        bearing = token(someone(), exp=99_999_999_999)
        world.passed("/x", bearing)
        answer = eventually(lambda: (a := world.fetch("/x", bearing)).status != 200 and a)
        assert_error(answer, dialect, "session_expired", "expired")


def test_requests_that_are_malformed(strict: World, dialect: str) -> None:
    answer = strict.refused("//api/sessions", token(someone()))
    assert answer.status == 400
    assert_error(answer, dialect, "bad_request", detail="The path must be written as it is documented")
    # Where a dialect was matched, its shape holds.
    answer = strict.refused("/sessions/all?exclude_current=x", token(someone()), method="DELETE")
    assert_error(answer, "mockstream", "bad_request", detail="exclude_current must be given once, as true or false")


def test_methods_that_are_never_forwarded(strict: World, dialect: str) -> None:
    answer = strict.refused("/x", token(someone()), method="TRACE")
    assert answer.status == 405
    assert_error(answer, dialect, "method_not_allowed", detail="This method is not allowed")


def test_what_only_own_paths_refuse_is_worded_by_their_dialect(strict: World) -> None:
    bearing = token(someone())
    answer = strict.refused("/sessions/user/1", bearing)
    assert_error(answer, "mockstream", "forbidden")
    answer = strict.refused("/sessions/all", headers=[cookie(bearing)], method="DELETE")
    assert_error(answer, "mockstream", "origin_not_allowed")
    answer = strict.refused("/api/sessions", headers=[cookie(bearing)], method="DELETE")
    assert_error(answer, "express", "origin_not_allowed")
    answer = strict.refused("/sessions/1", bearing, method="DELETE")
    assert_error(answer, "mockstream", "session_not_found")


def test_a_store_that_is_away(backend: Backend, store: Store, dialect: str) -> None:  # S15
    away = f"unix://{store.path}.away"
    with sidecar_app(store, backend, error_dialect=dialect, redis_url=away) as world:
        bearing = token(someone())
        assert_error(world.refused("/x", bearing), dialect, "store_unavailable")
        assert_error(world.refused("/api/sessions", bearing, method="DELETE"), "express", "store_unavailable")
        assert_error(world.refused("/sessions/logout", bearing, method="DELETE"), "mockstream", "store_unavailable")
        assert world.fetch("/x", bearing, method="HEAD").body == b""
        # What needs no store is answered as ever.
        assert_error(world.refused("/x"), dialect, "token_missing")
        assert_error(world.refused("/x", "x"), dialect, "token_invalid")


def test_keys_that_are_away(backend: Backend, store: Store, dialect: str) -> None:  # J05
    with sidecar_app(store, backend, error_dialect=dialect, jwks_url=f"http://127.0.0.1:{closed_port()}/") as world:
        bearing = token(someone()).replace("HS256", "RS256")
        rs256 = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ." + bearing.split(".", 1)[1]
        assert_error(world.refused("/x", rs256), dialect, "keys_unavailable")
        assert_error(world.refused("/api/sessions", rs256), "express", "keys_unavailable")


def test_a_backend_that_is_away(backend: Backend, store: Store, dialect: str) -> None:
    upstream = f"http://127.0.0.1:{closed_port()}"
    with sidecar_app(store, backend, error_dialect=dialect, upstream_url=upstream) as world:
        answer = world.refused("/x", token(someone()))
        assert answer.status == 502
        assert_error(answer, dialect, "upstream_unavailable", detail="The backend is unavailable")


def test_a_backend_that_is_silent(store: Store, dialect: str) -> None:
    async def silent(connection: RawConnection, request: RawRequest) -> None:
        await connection.gone()

    with (
        Backend(silent) as backend,
        sidecar_app(store, backend, error_dialect=dialect, upstream_timeout="100ms") as world,
    ):
        answer = world.fetch("/x", token(someone()))
        assert answer.status == 504
        assert_error(answer, dialect, "upstream_timeout", detail="The backend did not answer in time")
        head = world.fetch("/x", token(someone()), method="HEAD")
        assert (head.status, head.body) == (504, b"")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
