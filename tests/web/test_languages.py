"""In which language an answer is: by `language` in the body, then `Accept-Language`, then LANGUAGE (C-39, U14)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gatekeeper.messages import CATALOGUES
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, someone, token
from tests.web.shapes import ENDS, OPERATIONS, READS, admin, assert_refused, error_of, named, target

FRENCH = CATALOGUES["fr"]
NO_TOKEN = "Authentication credentials were not provided"
JSON = ("Content-Type", "application/json")


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store) as made:
        yield made


@pytest.fixture(scope="module")
def french_world(store: Store) -> Iterator[World]:
    with mounted(store, language="fr", error_dialect="django") as made:
        yield made


def asking(language: str) -> list[tuple[str, str]]:
    return [("Accept-Language", language)]


def end(world: World, dialect: str, *, headers: list[tuple[str, str]], body: Any = None) -> str:
    """What the end of all sessions says."""
    method, path = ENDS[dialect]
    content = None if body is None else json.dumps(body).encode()
    answer = world.fetch(path, token(someone()), method=method, headers=[JSON, *headers], body=content)
    assert answer.status == 200
    return str(json.loads(answer.body)["message"])


SAID = {
    "django": "All sessions terminated successfully",
    "express": "All sessions deleted successfully",
    "mockstream": "All sessions closed successfully",
    "users_me": "All other sessions revoked",
}


@pytest.mark.parametrize("dialect", SAID)
def test_the_body_comes_before_the_header_and_that_before_the_setting(
    world: World, french_world: World, dialect: str
) -> None:
    # C-39: "a request chooses by `language`, then `Accept-Language`"
    english, french = SAID[dialect], FRENCH[SAID[dialect]]
    for header, body, in_english, in_french in (
        ([], None, english, french),
        ([], {}, english, french),
        (asking("fr"), None, french, french),
        (asking("en"), None, english, english),
        (asking("de"), None, english, french),
        (asking("fr"), {"language": "en"}, english, english),
        (asking("en"), {"language": "fr-CA", "more": 1}, french, french),
        (asking("fr"), {"language": "de"}, french, french),
        ([], {"language": "de"}, english, french),
    ):
        assert end(world, dialect, headers=header, body=body) == in_english
        assert end(french_world, dialect, headers=header, body=body) == in_french


@pytest.mark.parametrize(
    "language",
    [
        *("../../etc/passwd", "{0.__class__}", "%s", "fr/../en", "x" * 10_000, "", "*", "fr\x00", "<script>"),
        *(7, None, True, ["fr"], {"fr": 1}, 1e300),
    ],
)
def test_a_language_of_the_body_that_is_none_is_not_looked_at(world: World, language: Any) -> None:  # U14
    assert end(world, "mockstream", headers=[], body={"language": language}) == SAID["mockstream"]
    assert end(world, "mockstream", headers=asking("fr"), body={"language": language}) == FRENCH[SAID["mockstream"]]


@pytest.mark.parametrize(
    "header",
    [
        *("*", "de, *;q=0.5", "fr;q=0", "fr;q=2", "french", "fr_FR", "../../etc/passwd", "{0.__class__}", "%s%n", ""),
        *("x" * 10_000, "fr," * 3_000, "fr-" * 3_000, "\xe9", "<script>alert(1)</script>", "en\tfr", ";q=1", ","),
    ],
)
def test_a_header_that_names_no_language_is_the_fallback(world: World, french_world: World, header: str) -> None:
    # U14
    assert error_of("fastapi", world.refused("/x", headers=asking(header))) == ("token_missing", NO_TOKEN)
    code, text = error_of("django", french_world.refused("/x", headers=asking(header)))
    assert (code, text) == ("unauthorized", FRENCH[NO_TOKEN])


@pytest.mark.parametrize(
    ("header", "french"),
    [
        ("fr", True),
        ("fr-CA,fr;q=0.9,en;q=0.8", True),
        ("en-US,en;q=0.9,fr;q=0.8", False),
        ("en;q=0.2, fr;q=0.3", True),
        ("de;q=1, fr;q=0.1", True),
        ("fr;q=0, en;q=0.1", False),
    ],
)
def test_the_header_is_read_with_its_weights(world: World, header: str, *, french: bool) -> None:
    _, text = error_of("fastapi", world.refused("/x", headers=asking(header)))
    assert text == (FRENCH[NO_TOKEN] if french else NO_TOKEN)


def test_several_headers_are_one(world: World) -> None:
    _, text = error_of("fastapi", world.refused("/x", headers=[*asking("en;q=0.1"), *asking("fr")]))
    assert text == FRENCH[NO_TOKEN]


# What is translated, and what never is


def both(world: World, path: str, bearing: str | None = None, **options: Any) -> tuple[ClientResponse, ClientResponse]:
    headers = [*options.pop("headers", []), ("X-Request-Id", "x")]
    return (
        world.fetch(path, bearing, headers=headers, **options),
        world.fetch(path, bearing, headers=[*headers, *asking("fr")], **options),
    )


def codes(body: Any) -> list[Any]:
    """Whatever a program reads of an error: everything but the texts."""
    if isinstance(body, dict):
        texts = {"message", "detail", "details", "timestamp"}
        return [(name, codes(value)) for name, value in body.items() if name not in texts]
    return [body]


def assert_translated(english: ClientResponse, french: ClientResponse) -> None:
    assert english.status == french.status
    first, second = json.loads(english.body), json.loads(french.body)
    assert first != second
    assert codes(first) == codes(second)
    for name in ("www-authenticate", "content-type", "cache-control"):
        assert english.get_all(name) == french.get_all(name)
    assert len(english.get_all("retry-after")) == len(french.get_all("retry-after"))
    assert french.get_all("content-length") == [str(len(french.body))]


@pytest.mark.parametrize(("dialect", "operation"), OPERATIONS, ids=named)
def test_a_refusal_is_translated_and_its_code_and_challenge_are_not(world: World, dialect: str, operation: Any) -> None:
    # RFC 6750 section 3: `error_description` is ASCII
    revoked = token(someone())
    world.fetch("/sessions/logout", revoked, method="DELETE")
    for bearing in (None, "nonsense", revoked):
        if operation.path == "/sessions/logout" and bearing == revoked:
            continue
        english, french = both(world, target(operation), bearing, method=operation.method)
        assert english.status == 401
        assert_translated(english, french)
        (challenge,) = french.get_all("www-authenticate")
        assert challenge.isascii()
        assert challenge in {
            "Bearer",
            'Bearer error="invalid_token", error_description="Invalid authentication token"',
            'Bearer error="invalid_token", error_description="Access token has been revoked"',
        }


@pytest.mark.parametrize("dialect", READS)
def test_what_is_wrong_with_a_request_is_translated(world: World, dialect: str) -> None:
    method, path = ENDS[dialect]
    for headers, body in ([(JSON[0], "text/plain")], b"{}"), ([JSON], b"{"), ([JSON], b" " * 70_000):
        assert_translated(*both(world, path, admin(), method=method, headers=headers, body=body))


def test_flags_paths_and_unknown_sessions_are_translated(world: World) -> None:
    for path, method in (
        ("/api/sessions?include_inactive=x", "GET"),
        ("/api/sessions?exclude_current=x", "DELETE"),
        ("/admin/sessions/active?user_id=1&user_id=2", "GET"),
        ("/api/sessions/7", "DELETE"),
        ("/api/sessions/7/deactivate", "PATCH"),
        ("/api/v1/users/me/sessions/7/", "DELETE"),
        ("/sessions/7", "DELETE"),
        ("/_gatekeeper/nothing", "GET"),
        ("/API/sessions", "GET"),
        ("/%zz", "GET"),
        ("/x", "TRACE"),
    ):
        assert_translated(*both(world, path, admin(), method=method))
    assert_translated(*both(world, "/admin/sessions/active", token(someone())))


def test_the_language_of_the_body_holds_for_a_refusal_of_the_operation_too(world: World) -> None:
    body = b'{"language": "fr"}'
    for path, text in (
        ("/sessions/7", "Session not found or already terminated"),
        ("/sessions/all?exclude_current=x", "exclude_current must be given once, as true or false"),
        ("/sessions/user/74", "Administrator rights are required"),
    ):
        answer = world.fetch(path, token(someone()), method="DELETE", headers=[JSON], body=body)
        assert error_of("mockstream", answer)[1] == FRENCH[text]


def test_french_is_utf8_and_counted_in_bytes(world: World) -> None:
    get = world.refused("/x", headers=asking("fr"))
    assert assert_refused("fastapi", get, 401, "token_missing") == FRENCH[NO_TOKEN]
    assert "été".encode() in get.body
    head = world.refused("/x", method="HEAD", headers=asking("fr"))
    assert head.get_all("content-length") == [str(len(get.body))]


def test_a_language_in_the_query_is_nobodys(world: World) -> None:
    answer = world.fetch("/sessions/all?language=fr", token(someone()), method="DELETE")
    assert json.loads(answer.body)["message"] == SAID["mockstream"]


def test_forwarded_requests_keep_their_own_language(world: World) -> None:
    request = world.passed("/protected", token(someone()), headers=asking("fr-CA, fr;q=0.5"))
    assert request.get_all("accept-language") == ["fr-CA, fr;q=0.5"]
