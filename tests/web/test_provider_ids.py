"""Identifiers as providers write them: a session under any `jti` and `sid` is listed, revoked, signed out and mirrored.

T19; Keycloak writes `onrtac:<uuid>`.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator

import pytest

from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, eventually, someone, token

IDS = [
    "onrtac:{}",
    "auth0|{}",
    "{} with spaces",
    "é-{}",
    "{{}}-{}",
    "*?[{}]",
    "100%-{}",
    "%2F-{}",
    "a:b:{}:meta",
    "h:{}",
    "\u2028{}",
    '"{}\\',
]


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, rate_limit="off") as world:
        yield world


def made(form: str) -> str:
    return form.replace("{}", uuid.uuid4().hex, 1)


@pytest.mark.parametrize("form", IDS)
@pytest.mark.parametrize("claim", ["jti", "sid"])
def test_a_session_of_any_id_is_listed_and_revoked(world: World, form: str, claim: str) -> None:
    user, name = someone(), made(form)
    bearing, other = token(user, **{claim: name}), token(user)
    world.passed("/", bearing)
    world.passed("/", bearing)
    world.passed("/", other)
    assert world.store.live(user) == 2
    listed = json.loads(world.fetch("/api/v1/users/me/sessions/", bearing).body)["data"]["sessions"]
    (mine,) = [session for session in listed if session["is_current"]]
    assert mine["session_key"] == hashlib.sha256(name.encode()).hexdigest()[:6] + "..."
    assert world.fetch(f"/api/sessions/{mine['id']}", other, method="DELETE").status == 200
    assert world.refused("/", bearing).status == 401
    world.passed("/", other)


@pytest.mark.parametrize("form", IDS)
def test_the_mirror_has_the_id_as_it_stands_where_that_is_harmless(world: World, form: str) -> None:  # C-32, rule 4.6
    name = made(form)
    bearing = token(someone(), jti=name)
    world.passed("/", bearing)
    assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200
    encoded = {char: "".join(f"%{byte:02X}" for byte in char.encode()) for char in "% {}*?[]\\é\u2028"}
    shown = "".join(encoded.get(char, char) for char in name)
    assert eventually(lambda: world.store.client.get(f"access_token_blacklist:{shown}")) == "logged_out"


def test_no_id_can_be_taken_for_another_one(world: World) -> None:  # T19
    user, base = someone(), uuid.uuid4().hex
    ended = token(user, sid=base, auth_time=7)
    world.passed("/", ended)
    assert world.fetch("/sessions/logout", ended, method="DELETE").status == 200
    assert world.refused("/", ended).status == 401
    # Each of these would be the same key, were it not encoded.
    for alike in ({"jti": f"{base}:7"}, {"sid": f"{base}:7"}, {"jti": f"{base}%3A7"}, {"sid": f"{base}%3A7"}):
        world.passed("/", token(user, **alike))
    live = token(user, jti=f"{base}:8")
    world.passed("/", live)
    assert world.fetch("/sessions/logout", token(user, sid=base, auth_time=8), method="DELETE").status == 200
    world.passed("/", live)
