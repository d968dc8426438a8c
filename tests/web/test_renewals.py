"""Backends that renew tokens on any response, before the client has it: inside of an application, and in the sidecar by
both of its ways."""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import mounted, sidecar_app
from tests.servers import ClientResponse, RawConnection, RawRequest
from tests.system.sidecar import Backend, Reached, Store, World, eventually, external_store, someone, token
from tests.waiting import HANG_SECONDS

LOGGED_OUT = error_body("access_token_blacklisted", "logged_out")
REVOKED = error_body("session_revoked_or_invalid", "revoked_by_user")
BODY = b"renewed"


def _headers(query: dict[str, list[str]]) -> list[tuple[bytes, bytes]]:
    lines = [base64.urlsafe_b64decode(each).decode() for each in query.get("h", ())]
    return [(name.encode(), value.encode()) for name, _, value in (each.partition(": ") for each in lines)]


def _line(text: str) -> str:
    """Spell a header line of the response so that the request itself does not bring the token in it."""
    return base64.urlsafe_b64encode(text.encode()).decode()


async def _backend(connection: RawConnection, request: RawRequest) -> None:
    """Answers as the query says: `h` are header lines, `status`, `how`: whole, slow, chunked or cut."""
    query = parse_qs(urlsplit(request.target.decode()).query)
    how = query.get("how", ["whole"])[0]
    lines = [b"HTTP/1.1 %b OK" % query.get("status", ["200"])[0].encode()]
    lines += [b"%b: %b" % pair for pair in _headers(query)]
    lines.append(b"Transfer-Encoding: chunked" if how == "chunked" else b"Content-Length: %d" % len(BODY))
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if how == "late":
        await asyncio.sleep(1)
    if how == "cut":
        await connection.write(head + BODY[:3])
        connection.close()
    elif request.method == b"HEAD":
        await connection.write(head)
    elif how == "chunked":
        await connection.write(head + b"4\r\n" + BODY[:4] + b"\r\n")
        await asyncio.sleep(0.05)
        await connection.write(b"3\r\n" + BODY[4:] + b"\r\n0\r\n\r\n")
    elif how == "slow":
        for part in (head, BODY[:3], BODY[3:]):
            await connection.write(part)
            await asyncio.sleep(0.05)
    else:
        await connection.write(head + BODY)


def _mount(reached: list[Reached], environ: dict[str, str]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        query = parse_qs(scope["query_string"].decode())
        headers = [*_headers(query), (b"content-length", b"%d" % len(BODY))]
        # Once only, as some frameworks give them.
        status = int(query.get("status", ["200"])[0])
        await send({"type": "http.response.start", "status": status, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": BODY})

    return GatekeeperMiddleware(app, load(environ))


@pytest.fixture(scope="module", params=["middleware", "sidecar"])
def world(request: pytest.FixtureRequest, store: Store) -> Iterator[World]:
    if request.param == "middleware":
        with mounted(store, _mount, rate_limit="off") as made:
            yield made
    else:
        with Backend(_backend) as backend, sidecar_app(store, backend, rate_limit="off") as made:
            yield made


def ask(world: World, bearing: str, *lines: str, method: str = "GET", **query: str) -> ClientResponse:
    """A request whose response has these header lines."""
    parameters = [*(("h", _line(line)) for line in lines), *query.items()]
    return world.fetch(f"/any?{urlencode(parameters)}", bearing, method=method)


def sessions(world: World, bearing: str) -> list[int]:
    return world.session_ids(bearing)


CARRIERS: dict[str, Callable[[str], str]] = {
    "header": lambda access: f"Authorization: Bearer {access}",
    "case": lambda access: f"AUTHORIZATION: bearer {access}",
    "cookie": lambda access: f"Set-Cookie: access_token={access}; Path=/; HttpOnly",
    "quoted": lambda access: f'set-cookie: access_token="{access}"',
}
HOW = ["whole", "slow", "chunked"]


@pytest.mark.parametrize("carry", CARRIERS.values(), ids=CARRIERS)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_token_of_any_response_joins_the_session_of_the_request(
    world: World, carry: Callable[[str], str], how: str, method: str
) -> None:
    user = someone()
    first, second, third = (token(user, n=number) for number in range(3))
    (number,) = sessions(world, first)
    for bearing, renewed in ((first, second), (second, third)):
        answer = ask(world, bearing, carry(renewed), how=how, method=method)
        assert (answer.status, answer.body) == (200, BODY)
        assert renewed in str(answer.headers)
        # The session, known before the first request with the new token.
        assert world.store.live(user) == 1
        assert sessions(world, renewed) == [number]
    assert world.fetch("/sessions/logout", third, method="DELETE").status == 200
    for each in (first, second, third):
        assert_own_response(world.refused("/any", each), 401, LOGGED_OUT)


def test_renewals_do_not_count_as_devices(world: World) -> None:
    user = someone()
    bearing = token(user)
    others = [token(user) for _ in range(2)]
    for each in others:
        world.fetch("/any", each)
    for _ in range(5):
        renewed = token(user)
        ask(world, bearing, f"Set-Cookie: access_token={renewed}")
        bearing = renewed
        assert world.fetch("/any", bearing).status == 200
    assert all(world.fetch("/any", each).status == 200 for each in others)


STRANGE: dict[str, Callable[[str], tuple[str, dict[str, str]]]] = {
    "another user's": lambda _: (f"Authorization: Bearer {token(someone())}", {}),
    "another sign-in's": lambda user: (f"Authorization: Bearer {token(user, sid=uuid.uuid4().hex)}", {}),
    "of an error": lambda user: (f"Authorization: Bearer {token(user)}", {"status": "403"}),
    "in another cookie": lambda user: (f"Set-Cookie: other={token(user)}", {}),
    "a deleted cookie": lambda user: (f"Set-Cookie: access_token={token(user)}; Max-Age=0", {}),
    "forged": lambda user: (f"Authorization: Bearer {token(user)[:-6]}AAAAAA", {}),
    "no token": lambda _: ("Authorization: Basic eDp5", {}),
    "empty": lambda _: ("Set-Cookie: access_token=", {}),
    "garbled": lambda _: ("Authorization: Bearer \xff\xfe", {}),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_what_is_no_renewal_of_the_session_passes_and_joins_nothing(
    world: World, make: Callable[[str], tuple[str, dict[str, str]]]
) -> None:
    user = someone()
    bearing = token(user, sid=uuid.uuid4().hex)
    (number,) = sessions(world, bearing)
    line, query = make(user)
    answer = ask(world, bearing, line, **query)
    assert answer.body == BODY
    assert sessions(world, bearing) == [number]
    handed = [each for each in re.split("[ =;]", line) if each.count(".") == 2]
    # If it is good, it is that of a session of its own, or of another user's.
    for each in handed:
        if world.fetch("/any", each).status == 200:
            assert sessions(world, each) != [number]


def test_tokens_with_the_sid_of_the_session_join_it(world: World) -> None:
    user, sid = someone(), uuid.uuid4().hex
    bearing = token(user, sid=sid, auth_time=1_700_000_000)
    (number,) = sessions(world, bearing)
    renewed = token(user, sid=sid, auth_time=1_700_000_100)
    assert ask(world, bearing, f"Authorization: Bearer {renewed}").status == 200
    assert sessions(world, renewed) == [number]


def test_a_response_that_ends_its_own_session_hands_out_a_dead_token(world: World) -> None:
    """The request is admitted, and its session ends before the response has come."""
    user = someone()
    bearing, renewed = token(user), token(user)
    (number,) = sessions(world, bearing)
    other = token(user)
    assert world.fetch("/any", other).status == 200
    assert world.fetch(f"/api/users/me/sessions/{number}", other, method="DELETE").status == 200
    # The token of a response that was under way joins the ended session in the script: tests/sessions/test_renewals.py.
    assert_own_response(ask(world, bearing, f"Authorization: Bearer {renewed}"), 401, REVOKED)


def test_a_token_of_the_session_that_comes_again_asks_nobody(world: World) -> None:
    user = someone()
    bearing = token(user)
    assert world.fetch("/any", bearing).status == 200
    before = world.store.scripts_run
    for _ in range(5):
        assert ask(world, bearing, f"Set-Cookie: access_token={bearing}; Max-Age=900").status == 200
    assert world.store.scripts_run - before == 5


@pytest.mark.parametrize("issued", ["before", "in the same second", "never"])
def test_a_response_revives_no_token_that_an_end_of_all_refused(world: World, issued: str) -> None:
    user, admin = someone(), token(someone(), roles=["admin"])
    times: dict[str, dict[str, Any]] = {"before": {"iat": int(time.time()) - 30}, "never": {"iat": ...}}
    old = token(user, **times.get(issued, {}))
    assert world.fetch(f"/sessions/user/{user}", admin, method="DELETE").status == 200
    assert world.refused("/any", old).status == 401
    time.sleep(1.1)
    bearing = token(user)
    (number,) = sessions(world, bearing)
    for carry in CARRIERS.values():
        assert ask(world, bearing, carry(old)).status == 200
        assert world.refused("/any", old).status == 401
    # A new one joins all the same.
    renewed = token(user)
    assert ask(world, bearing, f"Authorization: Bearer {renewed}").status == 200
    assert sessions(world, renewed) == [number]


BROUGHT: dict[str, Callable[[str], tuple[list[tuple[str, str]], str]]] = {
    "header": lambda text: ([("X-Any", text)], ""),
    "cookie": lambda text: ([("Cookie", f"a=1; other={text}")], ""),
    "encoded": lambda text: ([("Cookie", f"other={text.replace('e', '%65')}")], ""),
    "query": lambda text: ([], f"&next={text}"),
    "query, encoded": lambda text: ([], f"&next={text.replace('e', '%65')}"),
}


@pytest.mark.parametrize("bring", BROUGHT.values(), ids=BROUGHT)
def test_a_token_that_the_request_itself_brought_joins_nothing(
    world: World, bring: Callable[[str], tuple[list[tuple[str, str]], str]]
) -> None:
    user = someone()
    bearing, brought = token(user), token(user)
    headers, query = bring(brought)
    line = _line(f"Authorization: Bearer {brought}")
    assert world.fetch(f"/any?h={line}{query}", bearing, headers=headers).status == 200
    assert world.store.live(user) == 1
    # It is judged as any other that was never seen, and opens a session of its own.
    assert world.fetch("/any", brought).status == 200
    assert world.store.live(user) == 2


# What only the sidecar does


@pytest.fixture(scope="module")
def sidecar(store: Store) -> Iterator[World]:
    with Backend(_backend) as backend, sidecar_app(store, backend, rate_limit="off") as made:
        yield made


def test_a_response_that_breaks_off_breaks_off_at_the_client_too(sidecar: World) -> None:
    user = someone()
    bearing, renewed = token(user), token(user)
    (number,) = sessions(sidecar, bearing)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(sidecar, bearing, f"Authorization: Bearer {renewed}", how="cut")
    assert eventually(lambda: sessions(sidecar, renewed)) == [number]


def test_responses_to_head_join_too(sidecar: World) -> None:
    user = someone()
    bearing, renewed = token(user), token(user)
    (number,) = sessions(sidecar, bearing)
    assert ask(sidecar, bearing, f"Authorization: Bearer {renewed}", method="HEAD").status == 200
    assert sessions(sidecar, renewed) == [number]


def test_a_connection_to_the_backend_serves_on_after_a_held_response(sidecar: World) -> None:
    user = someone()
    bearing = token(user)
    for number in range(30):
        renewed = token(user)
        answer = ask(sidecar, bearing, f"Authorization: Bearer {renewed}", f"X-Number: {number}", how=HOW[number % 3])
        assert (answer.body, answer.get_all("x-number")) == (BODY, [str(number)])
        bearing = renewed
    assert sidecar.store.live(user) == 1


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(sidecar: World) -> None:
    user = someone()
    bearing = token(user)
    assert sidecar.fetch("/any", bearing).status == 200
    address = urlsplit(sidecar.url)
    query = urlencode({"h": _line(f"Authorization: Bearer {token(user)}"), "how": "late"})
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(f"GET /any?{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearing}\r\n\r\n".encode())
        reached = len(sidecar.reached)
        eventually(lambda: len(sidecar.reached) > reached - 1)
    assert sidecar.fetch("/any", bearing).status == 200
    assert sidecar.store.live(user) == 1


def test_without_a_store_the_response_passes_and_the_next_request_adopts() -> None:
    with (
        external_store() as store,
        Backend(_backend) as backend,
        sidecar_app(store, backend, store_timeout="500ms") as world,
        ThreadPoolExecutor() as others,
    ):
        user = someone()
        bearing, renewed = token(user), token(user)
        assert world.fetch("/any", bearing).status == 200
        reached = len(backend.reached)
        asked = others.submit(ask, world, bearing, f"Authorization: Bearer {renewed}", how="late")
        eventually(lambda: len(backend.reached) > reached)
        store.signal(signal.SIGSTOP)
        try:
            answer = asked.result(HANG_SECONDS)
        finally:
            store.signal(signal.SIGCONT)
        assert (answer.status, answer.body) == (200, BODY)
        assert eventually(lambda: world.fetch("/any", renewed).status == 200)
