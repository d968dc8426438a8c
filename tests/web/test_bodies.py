"""The bodies of requests for Gatekeeper's own operations: nothing, or a small JSON object (F24, D05, S20)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest

from gatekeeper.dialects.base import Operation
from tests.middleware.host import mounted
from tests.servers import ClientResponse, fetch, raw_client
from tests.system.sidecar import Store, World, bearer, eventually, someone, token
from tests.web.shapes import ENDS, READS, UNSAFE, admin, assert_refused, named, target

JSON = ("Content-Type", "application/json")
MOST = 64 * 1024


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, rate_limit="off") as made:
        yield made


def refused(world: World, dialect: str, *, headers: list[tuple[str, str]], body: bytes, status: int, code: str) -> None:
    """The end of all sessions with this body is refused, and nothing ends."""
    user = someone()
    bearing = admin(user)
    method, path = ENDS[dialect]
    answer = world.refused(path, bearing, method=method, headers=headers, body=body)
    text = assert_refused(dialect, answer, status, code)
    assert (
        text
        == {
            413: "The body is too large",
            415: "The body must be application/json, not compressed",
            400: "The body must be a JSON object",
        }[status]
    )
    assert world.store.live(user) == 1


@pytest.mark.parametrize("dialect", ENDS)
class TestInEveryDialect:
    @pytest.mark.parametrize(
        "kind",
        [
            *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""),
            *("application/json-patch+json", "application/jsonx", "text/plain; application/json", "*/*"),
        ],
    )
    def test_another_content_type_is_refused(self, world: World, dialect: str, kind: str) -> None:
        # S20: what a form can send without asking first
        headers = [("Content-Type", kind)]
        refused(world, dialect, headers=headers, body=b'{"language":"fr"}', status=415, code="unsupported_media_type")

    def test_no_content_type_is_refused(self, world: World, dialect: str) -> None:
        refused(world, dialect, headers=[], body=b"{}", status=415, code="unsupported_media_type")

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, identity", "x"])
    def test_a_compressed_body_is_refused_unread(self, world: World, dialect: str, coding: str) -> None:
        # F24: a bomb is never inflated
        bomb = gzip.compress(b'{"language":"' + b"x" * 10_000_000 + b'"}')
        assert len(bomb) < MOST
        headers = [JSON, ("Content-Encoding", coding)]
        refused(world, dialect, headers=headers, body=bomb, status=415, code="unsupported_media_type")

    @pytest.mark.parametrize(
        "body",
        [
            *(b"{", b"}", b"x", b'{"a":1}x', b"{'a':1}", b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"\x00"),
            *(b"[]", b'["language"]', b"null", b"7", b'"fr"', b"true", b" ", b"\xef\xbb\xbf{}", b'{"a":1e400}'),
            *('{"language":"fr"}'.encode("utf-16"), b'{"a":' + b"9" * 60_000 + b"}", b'{"a":-' + b"9" * 5_000 + b"}"),
            *(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"a":' + b"[" * 32_000 + b"]" * 32_000 + b"}", b"{" * 65_000),
        ],
        ids=lambda body: body[:12].hex(),
    )
    def test_what_is_no_json_object_is_refused(self, world: World, dialect: str, body: bytes) -> None:
        # D05: depth and digits too
        refused(world, dialect, headers=[JSON], body=body, status=400, code="bad_request")

    def test_a_body_that_is_too_large_is_refused(self, world: World, dialect: str) -> None:
        # D05: also what is only depth, fields or spaces
        for body in (
            b'{"language":"' + b"x" * MOST + b'"}',
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
            b"{}" + b" " * (MOST - 1),
        ):
            refused(world, dialect, headers=[JSON], body=body, status=413, code="body_too_large")

    def test_a_chunked_body_is_counted_as_it_comes(self, world: World, dialect: str) -> None:
        method, path = ENDS[dialect]
        for chunks, status in (
            ([b"{", b'"language"', b':"fr"}'], 200),
            ([b"{", b" " * (MOST - 2), b"}"], 200),
            ([b"{", b" " * (MOST - 1), b"}"], 413),
            ([b"{"] * 70_000, 413),
            ([b"{", b"}", b"}"], 400),
            ([], 200),
        ):
            answer = fetch(world.url, method, path, [bearer(admin()), JSON], iter(chunks))
            assert answer.status == status, (len(chunks), answer)

    def test_a_good_one_may_fill_its_room_and_hold_more_than_is_read(self, world: World, dialect: str) -> None:
        method, path = ENDS[dialect]
        full = b'{"padding":"' + b"x" * (MOST - 14) + b'"}'
        assert len(full) == MOST
        for body in (b"", b"{}", b' { "language" : "en" } \n', full, b'{"language":"fr","language":"en"}'):
            assert world.fetch(path, admin(), method=method, headers=[JSON], body=body).status == 200
        for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x=y"):
            headers = [("Content-Type", kind), ("Content-Encoding", "identity")]
            assert world.fetch(path, admin(), method=method, headers=headers, body=b"{}").status == 200

    def test_no_body_needs_no_content_type(self, world: World, dialect: str) -> None:
        method, path = ENDS[dialect]
        for headers in ([], [("Content-Type", "text/plain")], [("Content-Encoding", "gzip")]):
            for body in (None, b""):
                assert world.fetch(path, admin(), method=method, headers=headers, body=body).status == 200

    def test_a_read_ignores_its_body(self, world: World, dialect: str) -> None:
        for method in ("GET", "HEAD"):
            for body in (b"{", b"x" * 100_000):
                headers = [("Content-Type", "text/plain"), ("Content-Encoding", "gzip")]
                answer = world.fetch(READS[dialect], admin(), method=method, headers=headers, body=body)
                assert answer.status == 200


@pytest.mark.parametrize(("dialect", "operation"), UNSAFE, ids=named)
def test_every_operation_that_changes_something_looks_at_its_body(
    world: World, dialect: str, operation: Operation
) -> None:
    method, path = operation.method, target(operation)
    answer = world.refused(path, admin(), method=method, headers=[JSON], body=b"[]")
    assert_refused(dialect, answer, 400, "bad_request")
    assert_refused(dialect, world.refused(path, admin(), method=method, body=b"{}"), 415, "unsupported_media_type")


def test_nobody_without_a_token_has_a_body_read(world: World) -> None:
    for body in (b"{", b"x" * 70_000):
        answer = world.refused("/sessions/all", method="DELETE", headers=[JSON], body=body)
        assert_refused("mockstream", answer, 401, "token_missing")


async def test_a_length_that_is_too_much_is_refused_before_anything_comes(world: World) -> None:
    # D05: 1 GB that never has to be sent
    head = (
        "DELETE /sessions/all HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token(someone())}\r\nContent-Length: 1073741824\r\n\r\n"
    )
    async with raw_client(world.url) as client:
        await client.send(head.encode())
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_leaves_in_the_middle_ends_nothing(world: World) -> None:
    user = someone()
    world.passed("/", token(user))
    head = (
        "DELETE /sessions/all HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token(user)}\r\nContent-Length: 20\r\n\r\n{{"
    )
    async with raw_client(world.url) as client:
        await client.send(head.encode())
    async with raw_client(world.url) as client:
        # A second request that has to wait for nothing shows that the first is over as far as it comes.
        await client.send(
            f"GET /sessions/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token(user)}\r\n\r\n".encode()
        )
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    # The one before, and those of both requests: had the first done its work, it would be alone.
    eventually(lambda: world.store.live(user) == 3)


def test_a_connection_goes_on_after_a_body_that_was_not_read(world: World) -> None:
    """What was left of it is not taken for the next request (F-class)."""
    answers: list[ClientResponse] = []
    for _ in range(3):
        smuggled = b"DELETE /sessions/all HTTP/1.1\r\nHost: a\r\n\r\n"
        user = someone()
        answers.append(
            world.fetch(READS["mockstream"], token(user), headers=[("Content-Type", "text/plain")], body=smuggled)
        )
        assert world.store.live(user) == 1
    assert [answer.status for answer in answers] == [200] * 3
    assert all(isinstance(json.loads(answer.body), list) for answer in answers)
