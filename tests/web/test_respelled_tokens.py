"""A refresh token is known by what it says, however it is written (rule 5.17)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import jwt
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from tests.contracts.dialect import JSON
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, bearer, someone, token
from tests.tokens import forge
from tests.web.test_observed_sign_in import LOGIN, LOGOUT, REFRESH, REVOKED, end_all, mount, of, post, refused

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_rate_limit="off") as made:
        yield made


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "padded": lambda text: text + "=",
    "padded more": lambda text: text + "===",
    "other spare bits": lambda text: text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) ^ 1],
    "characters of no meaning": lambda text: text + "!*",
    "the other alphabet": lambda text: text.replace("-", "+").replace("_", "/"),
    "percent-encoded": lambda text: text.replace(".", "%2E"),
    "twice": lambda text: text.replace(".", "%252e"),
}
PLACES: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "member": lambda text: (of(refresh=text), [JSON]),
    "another member": lambda text: (of(x=text), [JSON]),
    "cookie": lambda text: (b"", [("Cookie", f"refresh_token={text}")]),
    "quoted cookie with escapes": lambda text: (b"", [("Cookie", f'a="\\{ord(text[0]):03o}{text[1:]}"')]),
    "bearer": lambda text: (b"", [bearer(text)]),
}


@pytest.mark.parametrize("name", ["refresh", "my_refresh"], ids=["named", "learnt"])
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_jwt_of_an_ended_session_is_refused_in_every_spelling(
    world: World, spell: Callable[[str], str], name: str
) -> None:  # S10, rule 5.17
    user = someone()
    access, kept = token(user), token(user, token_type="refresh")
    post(world, LOGIN, JSONResponse({"access": access, name: kept}), of(username=user))
    end_all(world, access)
    for place in PLACES.values():
        body, headers = place(spell(kept))
        assert refused(world, REFRESH, body, headers).body == REVOKED
    assert world.store.live(user) == 0


def test_what_pyjwt_accepts_is_among_them() -> None:
    assert jwt.decode(SPELLINGS["padded"](token(someone())), forge.SECRET, algorithms=["HS256"])


def test_an_encrypted_token_is_refused_in_every_spelling(world: World) -> None:  # S10, rule 5.17
    def segment(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    user = someone()
    access = token(user)
    kept = ".".join([segment(b'{"alg":"dir","enc":"A128GCM"}'), "", *(segment(someone().encode()) for _ in "123")])
    post(world, LOGIN, JSONResponse({"access": access, "refresh": kept}), of(username=user))
    end_all(world, access)
    for spell in (SPELLINGS["as it is"], SPELLINGS["padded"], SPELLINGS["other spare bits"]):
        assert refused(world, REFRESH, of(refresh=spell(kept))).body == REVOKED


COOKIES = {
    "base64": (
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVg%3D%3D",
        ["QUJDREVGR0hJSktMTU5PUFFSU1RVVg%3d%3D", "QUJDREVGR0hJSktMTU5PUFFSU1RVVg==", "QUJDREVGR0hJSktMTU5PUFFSU1RVVg"],
    ),
    "Express": (
        f"s%3Av4xqkdYtLbAyPzC8gq0%2Fw.{'A' * 42}B",
        [f"s:v4xqkdYtLbAyPzC8gq0/w.{'A' * 42}B", f"%73%3av4xqkdYtLbAyPzC8gq0%2fw.{'A' * 42}B", "v4xqkdYtLbAyPzC8gq0/w"],
    ),
}


@pytest.mark.parametrize("name", ["refresh_token", "rt"], ids=["named", "learnt"])
@pytest.mark.parametrize(("given", "spellings"), COOKIES.values(), ids=COOKIES)
def test_a_percent_encoded_cookie_of_an_ended_session_is_refused_in_every_spelling(
    world: World, given: str, spellings: list[str], name: str
) -> None:  # S10, rule 5.17
    user = someone()
    # Every case has a value of its own.
    given, *spellings = [each.replace("4", name[1]).replace("U", name[1].upper()) for each in (given, *spellings)]
    access = token(user)
    answer = JSONResponse({"access_token": access}, headers={"set-cookie": f"{name}={given}; HttpOnly"})
    post(world, LOGIN, answer, of(username=user))
    end_all(world, access)
    for each in (given, *spellings):
        assert refused(world, REFRESH, b"", [("Cookie", f"{name}={each}")]).body == REVOKED
        assert refused(world, REFRESH, of(refresh_token=each)).body == REVOKED


def test_a_respelled_token_logs_out_and_a_guessed_one_does_not(world: World) -> None:  # S27, rules 5.6 and 5.17
    """Whoever knows what a refresh token says, a user and some times, has not got it."""
    user = someone()
    access, kept = token(user), token(user, token_type="refresh", jti=...)
    post(world, LOGIN, JSONResponse({"access": access, "refresh": kept}), of(username=user))
    head, payload, _ = kept.split(".")
    for name in ("refresh", "x"):
        guessed = f"{head}.{payload}.{'A' * 43}"
        assert post(world, LOGOUT, PlainTextResponse("ok"), of(**{name: guessed})).status == 200
        assert world.store.live(user) == 1
    assert post(world, LOGOUT, PlainTextResponse("ok"), of(refresh=kept + "=")).status == 200
    assert world.store.live(user) == 0
