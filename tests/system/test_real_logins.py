"""Real logins behind the whole sidecar: Django with Simple JWT, and FastAPI Users. Neither knows of Gatekeeper, which
reads what they answer: sessions open, go on and end with their tokens, and clients get what the backend sent."""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from tests.contracts.dialect import CHROME_ON_WINDOWS, JSON, SAFARI_ON_IPHONE
from tests.contracts.responses import assert_own_response, error_body
from tests.servers import ClientResponse, django_process, fastapi_users_process, fetch
from tests.system.sidecar import Sidecar, Store, bearer, sidecar
from tests.tokens import forge

pytestmark = pytest.mark.slow

FORM = ("Content-Type", "application/x-www-form-urlencoded")
REVOKED = error_body("session_revoked_or_invalid", "revoked_by_user")
EVICTED = error_body("session_revoked_or_invalid", "evicted")
LOGGED_OUT = error_body("access_token_blacklisted", "logged_out")
_JWT = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+")
# What differs from answer to answer, and what is the connection's.
_PASSING = {"date", "x-request-id", "connection", "keep-alive"}


class Site(NamedTuple):
    """A backend, and a Gatekeeper in front of it that has no session yet."""

    backend: str
    gate: Sidecar
    store: Store
    prefix: str

    def post(
        self,
        path: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        user_agent: str = CHROME_ON_WINDOWS,
        direct: bool = False,
    ) -> ClientResponse:
        url = self.backend if direct else self.gate.url
        return fetch(url, "POST", path, [("User-Agent", user_agent), *headers], body)

    def get(self, path: str, token: str) -> ClientResponse:
        return fetch(self.gate.url, "GET", path, [bearer(token), ("User-Agent", "curl/8.5.0")])

    def delete(self, path: str, token: str) -> ClientResponse:
        return fetch(self.gate.url, "DELETE", path, [bearer(token)])

    def sessions(self, token: str) -> list[dict[str, Any]]:
        """The caller's live sessions, newest activity first."""
        answer = self.get("/api/users/me/sessions", token)
        assert answer.status == 200, answer
        rows: list[dict[str, Any]] = json.loads(answer.body)
        return rows

    def live(self, user: str) -> int:
        """How many live sessions of a user are in the store, without a request that might open one."""
        return self.store.live(user, self.prefix)

    def reached_the_backend(self, answer: ClientResponse) -> bool:
        (request_id,) = answer.get_all("x-request-id")
        return self.gate.access_of(request_id)["upstream_ms"] is not None


@contextmanager
def site(backend: str, store: Store, **settings: str) -> Iterator[Site]:
    """Everybody here is one of a few users: a part of the store of its own keeps one test from the next."""
    prefix = f"{uuid.uuid4().hex[:8]}:"
    with sidecar(backend, redis_url=store.url, key_prefix=prefix, **settings) as gate:
        yield Site(backend, gate, store, prefix)


MakeSite = Callable[..., AbstractContextManager[Site]]


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def next_second() -> None:
    """Until a second begins, in which whoever tells time by whole seconds has told none yet."""
    time.sleep(1.01 - time.time() % 1)


def masked(body: bytes) -> bytes:
    return _JWT.sub(b"<jwt>", body)


def assert_same(direct: ClientResponse, through: ClientResponse) -> None:
    assert through.status == direct.status
    assert masked(through.body) == masked(direct.body)
    lasting = [
        [(name.lower(), value) for name, value in answer.headers if name.lower() not in _PASSING]
        for answer in (direct, through)
    ]
    assert lasting[1] == lasting[0]
    assert len(through.get_all("x-request-id")) == 1
    assert len(through.get_all("date")) == 1


# Django with Simple JWT


class Pair(NamedTuple):
    access: str
    refresh: str


PASSWORDS = {"alice": "wonderland-1", "bob": "builder-22"}
LOGIN, REFRESH, LOGOUT = (f"/api/auth/{name}" for name in ("login", "refresh", "logout"))


@pytest.fixture(scope="module")
def django_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with django_process(tmp_path_factory.mktemp("django"), forge.SECRET) as url:
        yield url


@pytest.fixture(scope="module")
def before_django(django_url: str, store: Store) -> MakeSite:
    return lambda **settings: site(django_url, store, **{"jwt_user_claim": "user_id"} | settings)


@pytest.fixture
def django(before_django: MakeSite) -> Iterator[Site]:
    with before_django() as running:
        yield running


def of(**members: str) -> bytes:
    return json.dumps(members).encode()


def credentials(name: str) -> bytes:
    return of(username=name, password=PASSWORDS[name])


def pair(answer: ClientResponse) -> Pair:
    assert answer.status == 200, answer
    return Pair(**json.loads(answer.body))


def sign_in(site: Site, name: str = "alice", *, headers: Iterable[tuple[str, str]] = (), **options: Any) -> Pair:
    return pair(site.post(LOGIN, credentials(name), [JSON, *headers], **options))


def renew(site: Site, refresh: str, *, direct: bool = False) -> ClientResponse:
    return site.post(REFRESH, of(refresh=refresh), [JSON], direct=direct)


def admitted(site: Site, token: str, name: str = "alice") -> bool:
    answer = site.get("/api/me", token)
    return (answer.status, answer.body) == (200, of(username=name).replace(b" ", b""))


def test_a_login_opens_the_session(django: Site) -> None:  # A-17, C-01, E-05
    answer = django.post(LOGIN, credentials("alice"), [JSON])
    assert masked(answer.body) == b'{"refresh":"<jwt>","access":"<jwt>"}'
    access = pair(answer).access
    assert django.live(claims(access)["user_id"]) == 1
    (session,) = json.loads(django.get("/sessions/me", access).body)
    # The device is that of the login, not of the first request.
    assert (session["device_name"], session["ip_address"]) == ("Chrome on Windows 10", "127.0.0.1")
    (told,) = json.loads(django.get("/api/v1/auth/users/me/sessions/", access).body)["data"]["sessions"]
    assert (told["id"], told["login_method"]) == (session["id"], "password")
    assert (told["user_agent"], told["is_current"]) == (CHROME_ON_WINDOWS, True)
    assert admitted(django, access)
    assert [row["id"] for row in django.sessions(access)] == [session["id"]]


def test_the_login_of_a_form_and_an_answer_in_gzip_open_one_too(django: Site) -> None:  # E-05
    body = urlencode({"username": "bob", "password": PASSWORDS["bob"]}).encode()
    plain = django.post(LOGIN, body, [FORM])
    assert django.live(claims(pair(plain).access)["user_id"]) == 1
    squeezed = django.post(LOGIN, body, [FORM, ("Accept-Encoding", "gzip")])
    assert squeezed.get_all("content-encoding") == ["gzip"]
    assert squeezed.get_all("content-length") == [str(len(squeezed.body))]
    assert django.live(claims(pair(plain).access)["user_id"]) == 2


def test_a_failed_login_opens_nothing(django: Site) -> None:
    answer = django.post(LOGIN, of(username="alice", password="x"), [JSON])
    assert (answer.status, answer.get_all("server")) == (401, ["gunicorn"])
    assert django.store.client.keys(f"{django.prefix}*:sessions") == []


def test_a_refresh_is_never_a_new_device(django: Site) -> None:  # C-02
    first = sign_in(django)
    (before,) = django.sessions(first.access)
    second = pair(renew(django, first.refresh))
    assert len({*first, *second}) == 4
    for token in (second.access, first.access):
        assert admitted(django, token)
        (after,) = django.sessions(token)
        # The same session to the microsecond, but for its activity.
        assert after | {"last_activity": before["last_activity"]} == before
        assert after["last_activity"] > before["last_activity"]
    third = pair(renew(django, second.refresh))
    assert [row["id"] for row in django.sessions(third.access)] == [before["id"]]
    # A used one is Django's to refuse, and the session lives on.
    used = renew(django, first.refresh)
    assert (used.status, json.loads(used.body)["code"]) == (401, "token_not_valid")
    assert django.reached_the_backend(used)
    assert admitted(django, third.access)


def test_an_ended_session_is_refused_and_cannot_be_renewed(django: Site) -> None:  # C-02, C-11, C-13, E-07
    laptop = sign_in(django)
    phone = sign_in(django, user_agent=SAFARI_ON_IPHONE)
    rows = {row["device_name"]: row for row in django.sessions(phone.access)}
    assert rows.keys() == {"Chrome on Windows", "Safari on iOS"}
    renewed = pair(renew(django, laptop.refresh))
    answer = django.delete(f"/sessions/{rows['Chrome on Windows']['id']}", phone.access)
    assert json.loads(answer.body) == {"success": True, "message": "Session closed successfully"}
    for token in (laptop.access, renewed.access):
        assert_own_response(django.get("/api/me", token), 401, REVOKED)
    refused = renew(django, renewed.refresh)
    assert_own_response(refused, 401, REVOKED)
    assert not django.reached_the_backend(refused)
    # Django takes a refresh token once: it has not seen this one.
    assert pair(renew(django, renewed.refresh, direct=True))
    assert [row["id"] for row in django.sessions(phone.access)] == [rows["Safari on iOS"]["id"]]
    assert pair(renew(django, phone.refresh))


def test_a_bearer_of_an_ended_session_cannot_renew_another(django: Site) -> None:  # C-13
    laptop, phone = sign_in(django), sign_in(django, user_agent=SAFARI_ON_IPHONE)
    (ended,) = [row["id"] for row in django.sessions(laptop.access) if row["is_current"]]
    assert django.delete(f"/sessions/{ended}", phone.access).status == 200
    refused = django.post(REFRESH, of(refresh=phone.refresh), [JSON, bearer(laptop.access)])
    assert_own_response(refused, 401, REVOKED)
    assert pair(renew(django, phone.refresh))


def test_a_logout_ends_the_session_and_is_forwarded(django: Site) -> None:  # C-13
    tokens, other = sign_in(django), sign_in(django, user_agent=SAFARI_ON_IPHONE)
    answer = django.post(LOGOUT, of(refresh=tokens.refresh), [JSON])
    assert (answer.status, answer.body) == (200, b"{}")
    assert_own_response(django.get("/api/me", tokens.access), 401, LOGGED_OUT)
    assert_own_response(renew(django, tokens.refresh), 401, LOGGED_OUT)
    # Django has been told as well.
    told = json.loads(renew(django, tokens.refresh, direct=True).body)
    assert told == {"detail": "Token is blacklisted", "code": "token_not_valid"}
    assert admitted(django, other.access)
    assert len(django.sessions(other.access)) == 1


def test_a_login_with_a_good_token_ends_the_session_of_that_token(django: Site) -> None:
    first = sign_in(django)
    (before,) = django.sessions(first.access)
    second = sign_in(django, headers=[bearer(first.access)])
    assert_own_response(django.get("/api/me", first.access), 401, LOGGED_OUT)
    (after,) = django.sessions(second.access)
    assert after["id"] != before["id"]
    # Somebody else's is left alone.
    bob = sign_in(django, "bob", headers=[bearer(second.access)])
    assert admitted(django, second.access)
    assert admitted(django, bob.access, "bob")


def test_after_the_end_of_all_sessions_a_login_opens_at_once(django: Site) -> None:  # C-13, E-07
    next_second()
    tokens, unseen = sign_in(django), sign_in(django, direct=True)
    assert django.delete("/sessions/all", tokens.access).status == 200
    assert_own_response(django.get("/api/me", unseen.access), 401, error_body("session_revoked_or_invalid"))
    assert_own_response(renew(django, tokens.refresh), 401, REVOKED)
    # Of the same second, as far as its token says.
    assert admitted(django, sign_in(django).access)


def test_a_refresh_that_nothing_links_opens_a_session(django: Site) -> None:  # A-17, C-02
    unseen = sign_in(django, direct=True)
    tokens = pair(renew(django, unseen.refresh))
    assert django.live(claims(tokens.access)["user_id"]) == 1
    (told,) = json.loads(django.get("/api/v1/auth/users/me/sessions/", tokens.access).body)["data"]["sessions"]
    assert told["login_method"] == "refresh"


def test_where_unknown_sessions_are_rejected_a_login_is_known(before_django: MakeSite) -> None:  # C-11, E-05
    with before_django(unknown_session="reject") as django:
        unseen, tokens = sign_in(django, direct=True), sign_in(django)
        assert_own_response(django.get("/api/me", unseen.access), 401, error_body("session_revoked_or_invalid"))
        assert admitted(django, tokens.access)
        assert admitted(django, pair(renew(django, tokens.refresh)).access)


def test_without_room_the_token_is_withheld(before_django: MakeSite) -> None:  # C-12, C-21
    with before_django(device_limit="1", device_limit_policy="reject") as django:
        laptop = sign_in(django)
        refused = django.post(LOGIN, credentials("alice"), [JSON], user_agent=SAFARI_ON_IPHONE)
        assert_own_response(refused, 403, error_body("session_limit_exceeded"))
        assert len(django.sessions(laptop.access)) == 1
        # A renewal needs no room.
        assert admitted(django, pair(renew(django, laptop.refresh)).access)


def test_the_longest_silent_session_gives_way_to_a_login(before_django: MakeSite) -> None:  # C-12
    with before_django(device_limit="1") as django:
        laptop = sign_in(django)
        phone = sign_in(django, user_agent=SAFARI_ON_IPHONE)
        assert_own_response(django.get("/api/me", laptop.access), 401, EVICTED)
        assert [row["device_name"] for row in django.sessions(phone.access)] == ["Safari on iOS"]


def test_clients_get_what_django_answers(django: Site) -> None:  # A-17, C-01, C-02
    def answers(direct: bool) -> Iterator[ClientResponse]:
        def post(path: str, body: bytes) -> ClientResponse:
            return django.post(path, body, [JSON], direct=direct)

        yield post(LOGIN, of(username="alice", password="x"))
        yield post(LOGIN, of(username="alice"))
        yield post(LOGIN, b"{")
        yield (login := post(LOGIN, credentials("alice")))
        yield (renewed := post(REFRESH, of(refresh=pair(login).refresh)))
        yield post(REFRESH, of(refresh=pair(login).refresh))
        yield post(REFRESH, of(refresh="x"))
        yield post(REFRESH, b"")
        yield post(LOGOUT, of(refresh=pair(renewed).refresh))
        yield post(LOGOUT, of(refresh=pair(renewed).refresh))
        yield post(LOGOUT, b"")

    direct, through = list(answers(direct=True)), list(answers(direct=False))
    assert [answer.status for answer in direct] == [401, 400, 400, 200, 200, 401, 401, 400, 200, 401, 400]
    for one, other in zip(direct, through, strict=True):
        assert_same(one, other)


# FastAPI Users: neither `sid` nor `jti` nor `iat`, no refresh token, and two tokens of one second are the same

CAROL = {"username": "carol@example.org", "password": "wonderland-1"}


@pytest.fixture(scope="module")
def users_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fastapi_users_process(tmp_path_factory.mktemp("users"), forge.SECRET) as url:
        yield url


@pytest.fixture
def users(users_url: str, store: Store) -> Iterator[Site]:
    with site(users_url, store, jwt_audience="fastapi-users:auth") as running:
        yield running


def access(answer: ClientResponse) -> str:
    assert answer.status == 200, answer
    found: dict[str, str] = json.loads(answer.body)
    assert found.keys() == {"access_token", "token_type"}
    return found["access_token"]


def users_login(users: Site, **options: Any) -> ClientResponse:
    return users.post("/auth/login", urlencode(CAROL).encode(), [FORM], **options)


def users_refresh(users: Site, token: str, *, direct: bool = False) -> ClientResponse:
    return users.post("/auth/refresh", b"", [bearer(token)], direct=direct)


def current(users: Site, token: str) -> int:
    (found,) = [int(row["id"]) for row in users.sessions(token) if row["is_current"]]
    return found


def is_carol(users: Site, token: str) -> bool:
    answer = users.get("/users/me", token)
    return answer.status == 200 and json.loads(answer.body)["email"] == CAROL["username"]


def test_a_login_by_form_opens_the_session(users: Site) -> None:  # A-17, C-01, E-05
    answer = users_login(users)
    assert masked(answer.body) == b'{"access_token":"<jwt>","token_type":"bearer"}'
    token = access(answer)
    assert claims(token).keys() == {"sub", "aud", "exp"}
    assert users.live(claims(token)["sub"]) == 1
    (session,) = json.loads(users.get("/sessions/me", token).body)
    assert (session["device_name"], session["user_id"]) == ("Chrome on Windows 10", claims(token)["sub"])
    (told,) = json.loads(users.get("/api/v1/auth/users/me/sessions/", token).body)["data"]["sessions"]
    assert (told["id"], told["login_method"]) == (session["id"], "password")
    assert is_carol(users, token)
    assert [row["id"] for row in users.sessions(token)] == [session["id"]]


def test_a_bearer_renews_its_session(users: Site) -> None:  # C-02
    first = access(users_login(users))
    (before,) = users.sessions(first)
    next_second()
    second = access(users_refresh(users, first))
    assert second != first
    for token in (second, first):
        assert is_carol(users, token)
        (after,) = users.sessions(token)
        assert after | {"last_activity": before["last_activity"]} == before
    next_second()
    third = access(users_refresh(users, second))
    assert [row["id"] for row in users.sessions(third)] == [before["id"]]


def test_a_renewal_that_gives_the_same_token_is_the_same_session(users: Site) -> None:  # C-02
    for _ in range(10):
        next_second()
        token = access(users_login(users))
        before = current(users, token)
        if access(users_refresh(users, token)) == token:
            break
    else:
        pytest.fail("a login and a refresh never fell into one second")
    assert current(users, token) == before
    assert is_carol(users, token)


def test_the_bearer_of_an_ended_session_renews_nothing(users: Site) -> None:  # C-02, C-11, C-13, E-07
    laptop = access(users_login(users))
    next_second()
    phone = access(users_login(users, user_agent=SAFARI_ON_IPHONE))
    rows = {row["device_name"]: row["id"] for row in users.sessions(phone)}
    assert rows.keys() == {"Chrome on Windows", "Safari on iOS"}
    assert users.delete(f"/sessions/{rows['Chrome on Windows']}", phone).status == 200
    assert_own_response(users.get("/users/me", laptop), 401, REVOKED)
    refused = users_refresh(users, laptop)
    assert_own_response(refused, 401, REVOKED)
    assert not users.reached_the_backend(refused)
    # The backend would have renewed it.
    assert access(users_refresh(users, laptop, direct=True))
    assert [row["id"] for row in users.sessions(phone)] == [rows["Safari on iOS"]]


def test_a_login_of_the_same_second_lives_although_its_token_was_logged_out(users: Site) -> None:  # C-13
    for _ in range(100):
        next_second()
        token = access(users_login(users))
        logged_out = current(users, token)
        answer = users.post("/auth/logout", b"", [bearer(token)])
        assert (answer.status, answer.body) == (204, b"")
        assert_own_response(users.get("/users/me", token), 401, LOGGED_OUT)
        if access(users_login(users)) == token:
            break
    else:
        pytest.fail("two logins never fell into one second")
    assert is_carol(users, token)
    assert logged_out not in [row["id"] for row in users.sessions(token)]


def test_after_the_end_of_all_sessions_a_login_without_a_time_opens_at_once(users: Site) -> None:  # C-13, E-07
    token = access(users_login(users))
    next_second()
    unseen = access(users_login(users, direct=True))
    assert users.delete("/sessions/all", token).status == 200
    assert_own_response(users.get("/users/me", token), 401, REVOKED)
    assert_own_response(users.get("/users/me", unseen), 401, error_body("session_revoked_or_invalid"))
    assert is_carol(users, access(users_login(users)))


def test_clients_get_what_fastapi_users_answers(users: Site) -> None:  # C-01, C-02
    def answers(direct: bool) -> Iterator[ClientResponse]:
        def post(path: str, form: dict[str, str], *headers: tuple[str, str]) -> ClientResponse:
            return users.post(path, urlencode(form).encode(), [FORM, *headers], direct=direct)

        yield post("/auth/login", CAROL | {"password": "x"})
        yield post("/auth/login", {"username": "carol@example.org"})
        yield (login := post("/auth/login", CAROL))
        yield post("/auth/refresh", {}, bearer(access(login)))
        yield post("/auth/refresh", {})
        yield post("/auth/refresh", {}, bearer("x"))
        yield post("/auth/logout", {}, bearer(access(login)))
        yield post("/auth/logout", {})

    direct, through = list(answers(direct=True)), list(answers(direct=False))
    assert [answer.status for answer in direct] == [400, 422, 200, 200, 401, 401, 204, 401]
    for one, other in zip(direct, through, strict=True):
        assert_same(one, other)
