"""Tokens that Gatekeeper issues inside of an application: the application itself knows the passwords, and the tokens
may be in cookies (rule 5.7)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import METHODS, Mount, mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Reached, Store, World, eventually, external_store, someone
from tests.system.test_issuing import (
    BLACKLISTED,
    CHECK,
    LOGGED_OUT,
    PASSWORD,
    WRONG,
    Pair,
    described,
    login,
    pair,
    part,
    post,
    refresh_invalid,
    renew,
    sign_in,
)

pytestmark = pytest.mark.slow

# The application


class Application:
    """Knows passwords, and asks Gatekeeper who is there. `asked` are the heads of the requests for its check."""

    def __init__(self, reached: list[Reached]) -> None:
        self._reached = reached
        self.asked: list[dict[str, str]] = []
        routes = [Route(CHECK, self.check, methods=["POST"])]
        self.app = Starlette(routes=[*routes, Route("/{path:path}", self.everything, methods=METHODS)])

    async def check(self, request: Request) -> Response:
        self.asked.append({**request.headers, "path": request.url.path})
        members = await request.json()
        if members["password"] == "silent":
            await asyncio.sleep(600)
        if members["password"] == "raises":
            raise RuntimeError("a bug of the application")
        if members["password"] == "elsewhere":
            return RedirectResponse("/internal/elsewhere")
        if members["password"] == PASSWORD:
            return JSONResponse({"id": int(members["username"]), "roles": ["user"]})
        return JSONResponse({"detail": "wrong"}, 401)

    async def everything(self, request: Request) -> Response:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]
        self._reached.append(Reached(request.method, request.url.path, headers))
        session = current_session(request)
        return PlainTextResponse(session.user if session else "nobody")


applications: list[Application] = []


def around(reached: list[Reached], environ: dict[str, str]) -> Any:
    applications.append(Application(reached))
    return GatekeeperMiddleware(applications[-1].app, load(environ))


def inside(reached: list[Reached], environ: dict[str, str]) -> Any:
    applications.append(Application(reached))
    applications[-1].app.add_middleware(GatekeeperMiddleware, settings=load(environ))
    return applications[-1].app


ISSUE = {"tokens": "issue", "login_check_url": CHECK, "upstream_timeout": "3s"}


@pytest.fixture(scope="module", params=[around, inside], ids=["around", "inside"])
def mounting(store: Store, request: pytest.FixtureRequest) -> Iterator[tuple[World, Application]]:
    mount: Mount = request.param
    with mounted(store, mount, **ISSUE) as world:
        yield world, applications[-1]


@pytest.fixture
def world(mounting: tuple[World, Application]) -> World:
    return mounting[0]


def test_the_flow_of_the_specification(world: World) -> None:  # C-01, C-02, C-03, C-10, C-37, C-38
    user = someone()
    first = pair(post(world, "/auth/login", {"username": user, "password": PASSWORD}))
    before = world.store.last_activity(user)
    assert world.fetch("/api/v1/protected", first.access).body == user.encode()
    assert world.store.last_activity(user) > before
    second = pair(post(world, "/auth/refresh", {"refresh_token": first.refresh}))
    assert_own_response(post(world, "/auth/logout", {"access_token": first.access}), 200, LOGGED_OUT)
    for each in (first, second):
        assert_own_response(world.refused("/api/v1/protected", each.access), 401, BLACKLISTED)
    assert_own_response(renew(world, second.refresh), 401, refresh_invalid("logged_out"))


def test_a_path_for_logins_takes_refreshes_that_say_so(world: World) -> None:  # C-02, rule 5.14
    user = someone()
    first = pair(post(world, "/auth/login", {"username": user, "password": PASSWORD}))
    second = pair(post(world, "/auth/login", {"grant_type": "refresh_token", "refresh_token": first.refresh}))
    third = pair(post(world, "/auth/login?grant_type=refresh_token", {"refresh_token": second.refresh}))
    assert world.store.live(user) == 1
    assert world.fetch("/api/v1/protected", third.access).body == user.encode()
    # A password beside it is not asked about, and opens nothing.
    guess = {"grant_type": "refresh_token", "username": user, "password": PASSWORD, "refresh_token": "x" * 43}
    assert post(world, "/auth/login", guess).status == 401
    assert post(world, "/auth/login", {"grant_type": "refresh_token"}).status == 400
    assert world.store.live(user) == 1


def test_the_application_is_asked_and_nobody_else_can_ask_it(mounting: tuple[World, Application]) -> None:
    world, application = mounting
    before = len(application.asked)
    tokens = pair(login(world, someone(), headers=[("X-Request-Id", "a1"), ("Cookie", "a=b"), ("X-User-Id", "1")]))
    (head,) = application.asked[before:]
    assert (head["path"], head["content-type"], head["x-request-id"]) == (CHECK, "application/json", "a1")
    assert head["x-forwarded-for"] == "127.0.0.1"
    assert not {"cookie", "authorization", "x-user-id"} & head.keys()
    members = {"username": someone(), "password": "wrong"}
    assert_own_response(post(world, CHECK, members), 401, error_body("token_missing"))
    assert len(application.asked) == before + 1
    assert_own_response(login(world, members["username"], password="wrong"), 401, WRONG)
    # Who is signed in may: it is a path of the application, and opens no session.
    assert post(world, CHECK, members, bearing=tokens.access).body == b'{"detail":"wrong"}'
    assert world.store.live(members["username"]) == 0


@pytest.mark.parametrize("password", ["raises", "elsewhere", "silent"])
def test_a_check_in_trouble_is_no_wrong_password(mounting: tuple[World, Application], password: str) -> None:  # J7
    world, application = mounting
    user, before, reached = someone(), len(application.asked), len(world.reached)
    answer = login(world, user, password=password)
    expected = (504, "upstream_timeout") if password == "silent" else (502, "upstream_unavailable")
    assert (answer.status, json.loads(answer.body)["code"]) == expected
    assert (len(application.asked), len(world.reached)) == (before + 1, reached)
    assert world.store.live(user) == 0
    sign_in(world, user)


# Tokens in cookies


SET = re.compile(
    r"(__Host-(?:access|refresh))=([\w.-]*); Path=/; Max-Age=(\d+); Secure; HttpOnly; SameSite=(Lax|Strict)"
)
CLEARED = [
    "__Host-access=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax",
    "__Host-refresh=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict",
]
HERE = ("Sec-Fetch-Site", "same-origin")
IN_COOKIES = b'{"token_type":"bearer","expires_in":900}'


@pytest.fixture(scope="module")
def site(store: Store) -> Iterator[World]:
    with mounted(store, around, **ISSUE, token_transport="cookie", public_paths="/public/*") as running:
        yield running


def ages(answer: ClientResponse) -> list[int]:
    return [int(match[3]) for line in answer.get_all("set-cookie") if (match := SET.fullmatch(line))]


def cookies(answer: ClientResponse) -> Pair:
    """The tokens that an answer sets as cookies, and nowhere else; it is this to the byte."""
    assert_own_response(answer, 200, IN_COOKIES)
    found = [match.groups() for line in answer.get_all("set-cookie") if (match := SET.fullmatch(line))]
    assert len(found) == len(answer.get_all("set-cookie"))
    assert [(name, same_site) for name, _, _, same_site in found] == [
        ("__Host-access", "Lax"),
        ("__Host-refresh", "Strict"),
    ]
    return Pair(found[0][1], found[1][1])


def sent(tokens: Pair, *names: str) -> tuple[str, str]:
    """A `Cookie` header with both, or with the one that is named."""
    values = {"__Host-access": tokens.access, "__Host-refresh": tokens.refresh}
    return ("Cookie", "; ".join(f"{name}={values[name]}" for name in names or values))


def test_tokens_in_cookies_are_nowhere_else(site: World) -> None:  # C-01, C-02, C-03
    user = someone()
    answer = login(site, user)
    first = cookies(answer)
    # As long as the token, and as the session; a second may have passed.
    access_seconds, session_seconds = ages(answer)
    assert 895 <= access_seconds <= 900
    assert 86_395 <= session_seconds <= 86_400
    assert part(first.access, 1)["sub"] == user
    assert site.fetch("/protected", headers=[sent(first)]).body == user.encode()
    second = cookies(post(site, "/auth/refresh", headers=[sent(first), HERE]))
    assert len({*first, *second}) == 4
    # Again within the window: the same.
    assert cookies(post(site, "/auth/refresh", {}, headers=[sent(first), HERE])) == second
    answer = post(site, "/auth/logout", headers=[sent(second), HERE])
    assert_own_response(answer, 200, LOGGED_OUT)
    assert answer.get_all("set-cookie") == CLEARED
    for each in (first, second):
        assert_own_response(site.refused("/", headers=[sent(each)]), 401, BLACKLISTED)
    refused = post(site, "/auth/refresh", headers=[sent(second), HERE])
    assert_own_response(refused, 401, refresh_invalid("logged_out"))
    # A token was sent, in a cookie.
    challenge = 'Bearer error="invalid_token", error_description="Refresh token is invalid or expired"'
    assert refused.get_all("www-authenticate") == [challenge]
    assert post(site, "/auth/logout", headers=[sent(second), HERE]).get_all("set-cookie") == CLEARED


def test_a_cookie_lives_no_longer_than_its_session(store: Store) -> None:
    with mounted(store, around, **ISSUE, token_transport="cookie", session_ttl="60s") as world:
        answer = login(world, someone())
        assert cookies(answer)
        assert all(55 <= age <= 60 for age in ages(answer))


OTHER_SITES: list[list[tuple[str, str]]] = [
    [],
    [("Origin", "https://evil.example")],
    [("Origin", "null")],
    [("Sec-Fetch-Site", "cross-site")],
    [("Sec-Fetch-Site", "same-site")],
    [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")],
]
ASKS = [
    ("POST", "/auth/refresh", "__Host-refresh"),
    ("POST", "/auth/logout", "__Host-access"),
    ("POST", "/auth/logout", "__Host-refresh"),
    ("DELETE", "/sessions/logout", "__Host-access"),
]


def test_another_site_can_neither_renew_nor_sign_out(site: World) -> None:  # S21
    user = someone()
    tokens = cookies(login(site, user))
    activity = site.store.last_activity(user)
    for headers in OTHER_SITES:
        for method, path, name in ASKS:
            for cookie in (sent(tokens), sent(tokens, name)):
                answer = site.refused(path, method=method, headers=[cookie, *headers])
                assert_own_response(answer, 403, error_body("origin_not_allowed"))
                assert answer.get_all("set-cookie") == []
    assert site.store.last_activity(user) == activity
    origin = ("Origin", site.url)
    second = cookies(post(site, "/auth/refresh", headers=[sent(tokens), origin]))
    third = cookies(post(site, "/auth/refresh", headers=[sent(second), ("Sec-Fetch-Site", "none")]))
    # The access cookie is gone first; the refresh cookie signs out as well.
    answer = post(site, "/auth/logout", headers=[sent(third, "__Host-refresh"), origin])
    assert_own_response(answer, 200, LOGGED_OUT)
    assert_own_response(site.refused("/", headers=[sent(third)]), 401, BLACKLISTED)


def test_a_listed_origin_may_renew_sign_out_and_read_the_answers(store: Store) -> None:  # S21
    page = "https://app.example"
    with mounted(store, around, **ISSUE, token_transport="cookie", cors_origins=page) as world:
        origin = ("Origin", page)
        asks = [origin, ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type")]
        for path in ("/auth/login", "/api/v1/auth/refresh", "/logout"):
            allowed = world.fetch(path, method="OPTIONS", headers=asks)
            assert (allowed.status, allowed.get_all("access-control-allow-origin")) == (204, [page])
            assert allowed.get_all("access-control-allow-methods") == ["POST"]
        answers = [login(world, someone(), headers=[origin])]
        for path in ("/auth/refresh", "/auth/logout", "/auth/refresh"):
            headers = [sent(cookies(answers[0])), origin, ("Sec-Fetch-Site", "cross-site")]
            answers.append(post(world, path, headers=headers))
        assert [answer.status for answer in answers] == [200, 200, 200, 401]
        for answer in answers:
            assert answer.get_all("access-control-allow-origin") == [page]
            assert answer.get_all("access-control-allow-credentials") == ["true"]
            assert answer.get_all("vary") == ["Origin"]


def test_tokens_of_two_users_in_cookies_are_refused(site: World) -> None:  # S09, S27
    mine, theirs = (cookies(login(site, someone())) for _ in range(2))
    mixed = sent(Pair(mine.access, theirs.refresh))
    for path in ("/auth/refresh", "/auth/logout"):
        assert_own_response(post(site, path, headers=[mixed, HERE]), 401, error_body("token_invalid"))
    twice = ("Cookie", f"__Host-refresh={mine.refresh}; __Host-refresh={theirs.refresh}")
    assert_own_response(post(site, "/auth/refresh", headers=[twice, HERE]), 401, refresh_invalid())
    for each in (mine, theirs):
        site.passed("/", headers=[sent(each)])


def test_the_application_never_sees_the_refresh_cookie(site: World) -> None:
    tokens = cookies(login(site, someone()))
    access, refresh = f"__Host-access={tokens.access}", f"__Host-refresh={tokens.refresh}"
    for cookie, expected in [
        (f"{access}; {refresh}", access),
        (f'a="b c";  x=1;{access};{refresh}; y', f'a="b c";  x=1;{access}; y'),
        (f"{refresh}; {access}; __host-refresh=z; refresh=1", f"{access}; __host-refresh=z; refresh=1"),
        (f"{access}; ={refresh}; __Host-refreshed=1", f"{access}; __Host-refreshed=1"),
    ]:
        assert site.passed("/a", headers=[("Cookie", cookie)]).get_all("cookie") == [expected]
    # In two lines, on a public path, and beside a bearer.
    two = [("Cookie", access), ("Cookie", refresh), ("Cookie", "a=1")]
    assert site.passed("/a", headers=two).get_all("cookie") == [access, "a=1"]
    assert site.passed("/public/a", headers=[("Cookie", f"a=1; {refresh}")]).get_all("cookie") == ["a=1"]
    assert site.passed("/public/a", headers=[("Cookie", refresh)]).get_all("cookie") == []
    assert site.passed("/a", tokens.access, headers=[("Cookie", refresh)]).get_all("cookie") == []


def test_a_login_in_the_same_browser_is_no_second_device(site: World) -> None:  # S11, S12
    user = someone()
    victim = cookies(login(site, someone()))
    first = cookies(login(site, user, headers=[sent(victim), HERE]))
    second = cookies(login(site, user, headers=[sent(first), HERE]))
    assert_own_response(site.refused("/", headers=[sent(first)]), 401, BLACKLISTED)
    assert site.store.live(user) == 1
    assert len({part(each.access, 1)["sid"] for each in (victim, first, second)}) == 3
    site.passed("/", headers=[sent(victim)])
    # The access cookie leaves first. When it has, the refresh cookie says that it is the same browser.
    third = cookies(login(site, user, headers=[sent(second, "__Host-refresh"), HERE]))
    site.passed("/", headers=[sent(third)])
    assert site.store.live(user) == 1


def test_a_store_that_is_away_clears_no_cookie() -> None:  # S15, rule 4.8
    with external_store() as store, mounted(store, around, **ISSUE, token_transport="cookie") as world:
        tokens = cookies(login(world, someone()))
        store.kill()
        for answer in (
            post(world, "/auth/logout", headers=[sent(tokens), HERE]),
            post(world, "/auth/refresh", headers=[sent(tokens), HERE]),
            login(world, someone()),
            world.fetch("/", headers=[sent(tokens)]),
        ):
            assert_own_response(answer, 503, error_body("store_unavailable"))
            assert answer.get_all("set-cookie") == []
        # It may be said again.
        store.start()
        eventually(lambda: world.fetch("/", headers=[sent(tokens)]).status != 503)
        assert_own_response(post(world, "/auth/logout", headers=[sent(tokens), HERE]), 200, LOGGED_OUT)


def test_every_answer_is_as_the_document_describes_it(site: World) -> None:
    document = described(site)
    answer = login(site, someone())
    tokens = cookies(answer)
    for path, each, status in [
        ("/login", answer, 200),
        ("/auth/refresh", post(site, "/auth/refresh", headers=[sent(tokens)]), 403),
        ("/auth/refresh", post(site, "/auth/refresh", headers=[sent(tokens), HERE]), 200),
        ("/auth/logout", post(site, "/auth/logout", headers=[sent(tokens)]), 403),
        ("/logout", post(site, "/logout", headers=[sent(tokens), HERE]), 200),
        ("/auth/refresh", post(site, "/auth/refresh", headers=[sent(tokens), HERE]), 401),
    ]:
        assert each.status == status, (path, each)
        document.validate(document.operations["POST", path], each)
