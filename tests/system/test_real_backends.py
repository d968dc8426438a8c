"""Real applications behind the whole sidecar, with a token: what comes through is what they sent, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator

import pytest

from tests.servers import ClientResponse, datasette_process, fetch, httpbin_process
from tests.system.sidecar import Sidecar, Store, bearer, sidecar, someone, token

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20
# What a server says about the moment and the connection, and what Gatekeeper adds.
_PASSING = {"date", "connection", "keep-alive", "transfer-encoding", "x-request-id", "server-timing"}
# Answers that quote the request's headers, Gatekeeper's among them.
SHOW_HEADERS = {"/gzip", "/deflate", "/brotli", "/stream/100", "/cache/60", "/etag/abc"}


@pytest.fixture(scope="module")
def httpbin() -> Iterator[str]:
    with httpbin_process() as url:
        yield url


@pytest.fixture(scope="module")
def before_httpbin(httpbin: str, store: Store) -> Iterator[Sidecar]:
    with sidecar(httpbin, redis_url=store.url) as running:
        yield running


@pytest.fixture(scope="module")
def datasette(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with datasette_process(tmp_path_factory.mktemp("datasette")) as url:
        yield url


@pytest.fixture(scope="module")
def before_datasette(datasette: str, store: Store) -> Iterator[Sidecar]:
    with sidecar(datasette, redis_url=store.url) as running:
        yield running


@pytest.fixture(scope="module")
def bearing() -> str:
    return token(someone())


def lasting(answer: ClientResponse) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in answer.headers if name.lower() not in _PASSING]


def assert_same(direct: ClientResponse, through: ClientResponse) -> None:
    # ASGI has no reason phrases: uvicorn's own takes the place of the backend's.
    assert through.status == direct.status
    assert through.body == direct.body
    assert lasting(through) == lasting(direct)
    assert len(through.get_all("x-request-id")) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_every_method_arrives(before_httpbin: Sidecar, bearing: str, method: str) -> None:
    path = "/anything" if method in {"HEAD", "OPTIONS"} else f"/{method.lower()}"
    answer = fetch(before_httpbin.url, method, f"{path}?a=1&a=2", [bearer(bearing)])
    assert answer.status == 200
    if method not in {"HEAD", "OPTIONS"}:
        assert json.loads(answer.body)["args"] == {"a": ["1", "2"]}


@pytest.mark.parametrize(
    "target",
    [
        *(f"/status/{code}" for code in (200, 201, 202, 204, 206, 301, 304, 400, 401, 403, 404, 418, 429, 500, 503)),
        "/redirect/2",
        "/absolute-redirect/1",
        "/redirect-to?url=http%3A%2F%2Fexample.com%2F",
        "/gzip",
        "/deflate",
        "/brotli",
        "/cookies/set?one=1&two=2",
        "/stream/100",
        "/bytes/4096?seed=7",
        "/stream-bytes/65536?seed=7&chunk_size=1000",
        "/range/1024",
        "/encoding/utf8",
        "/image/png",
        "/response-headers?X-One=1&X-One=2",
        "/cache/60",
        "/etag/abc",
    ],
)
def test_answers_come_back_as_they_are(httpbin: str, before_httpbin: Sidecar, bearing: str, target: str) -> None:
    # `Host` names the server in httpbin's links, and its answers show who asked: the same for both.
    headers = [("Host", "api.example"), bearer(bearing), ("X-Forwarded-For", "127.0.0.1")]
    direct = fetch(httpbin, "GET", target, headers)
    through = fetch(before_httpbin.url, "GET", target, headers)
    if target not in SHOW_HEADERS:
        assert_same(direct, through)
        return
    assert through.status == 200
    for name in ("content-encoding", "content-type", "etag", "cache-control"):
        assert through.get_all(name) == direct.get_all(name)
    if target == "/gzip":
        assert json.loads(zlib.decompress(through.body, 47))["gzipped"] is True
    if target == "/stream/100":
        assert len(through.body.splitlines()) == 100


@pytest.mark.parametrize("ranges", ["bytes=0-9", "bytes=100-", "bytes=-7", "bytes=5000-"])
def test_ranges(httpbin: str, before_httpbin: Sidecar, bearing: str, ranges: str) -> None:
    headers = [bearer(bearing), ("Range", ranges)]
    assert_same(fetch(httpbin, "GET", "/range/1024", headers), fetch(before_httpbin.url, "GET", "/range/1024", headers))


def test_ten_megabytes_up_and_down(before_httpbin: Sidecar, bearing: str) -> None:
    body = os.urandom(10 * MEGABYTE)
    for sent in (body, [body[at : at + 100_000] for at in range(0, len(body), 100_000)]):
        answer = fetch(before_httpbin.url, "POST", "/post", [bearer(bearing)], sent)
        # httpbin gives a body that is no text back in base64.
        assert answer.status == 200
        assert len(answer.body) > 13 * MEGABYTE
    target = f"/stream-bytes/{10 * MEGABYTE}?seed=3&chunk_size=65536"
    down = [hashlib.sha256(fetch(before_httpbin.url, "GET", target, [bearer(bearing)]).body).digest() for _ in range(2)]
    assert down[0] == down[1]


def test_a_dripping_answer_comes_whole(before_httpbin: Sidecar, bearing: str) -> None:
    answer = fetch(before_httpbin.url, "GET", "/drip?duration=1&numbytes=10&delay=0", [bearer(bearing)])
    assert (answer.status, answer.body) == (200, b"*" * 10)


def test_cookies_go_both_ways_and_stay_with_their_client(before_httpbin: Sidecar, bearing: str) -> None:  # P0-S8
    one, other = bearing, token(someone())
    answer = fetch(before_httpbin.url, "GET", "/cookies/set?a=1", [bearer(one)])
    assert answer.status == 302
    assert answer.get_all("set-cookie") == ["a=1; Path=/"]
    seen = fetch(before_httpbin.url, "GET", "/cookies", [bearer(other)])
    assert json.loads(seen.body) == {"cookies": {}}
    sent = fetch(before_httpbin.url, "GET", "/cookies", [bearer(one), ("Cookie", "a=1; b=2")])
    assert json.loads(sent.body) == {"cookies": {"a": "1", "b": "2"}}


def test_anything_shows_exactly_which_headers_arrived(before_httpbin: Sidecar) -> None:  # H01, H02, H06, H10, P0-S10
    user = someone()
    credential = bearer(token(user, roles=["user"]))
    answer = fetch(
        before_httpbin.url,
        "GET",
        # Without this httpbin hides what proxies say.
        "/anything?show_env=1",
        [
            ("Host", "api.example:8443"),
            credential,
            ("X-Mine", "1"),
            ("X-Request-Id", "abc"),
            *((name, "1") for name in ("X-User-Id", "X_User_Id", "x.user.id", "X-Session-Id", "X-User-Roles")),
            ("X-Forwarded-For", "203.0.113.9"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Original-URL", "/admin"),
            ("X-Gatekeeper-Degraded", "1"),
            ("Forwarded", "for=203.0.113.9"),
            ("Proxy-Authorization", "Basic eDp5"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("TE", "trailers"),
        ],
    )
    arrived = json.loads(answer.body)["headers"]
    assert arrived.pop("X-Session-Id").isdigit()
    assert arrived == {
        "Host": "api.example:8443",
        "Authorization": credential[1],
        "X-Mine": "1",
        # The proxy's own hop (RFC 9110 section 10.1.4).
        "Te": "trailers",
        "Connection": "te",
        "X-Request-Id": "abc",
        "X-User-Id": user,
        "X-User-Roles": "user",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": "api.example:8443",
        "X-Forwarded-Port": "8443",
        "X-Forwarded-Proto": "http",
        "X-Real-Ip": "127.0.0.1",
    }


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/shop",
        "/shop/orders?_size=50",
        "/shop/orders?_sort_desc=id",
        "/shop/orders/7",
        "/shop/orders.json?_size=20",
        "/shop.json?sql=select+1",
        "/-/versions.json",
        "/-/static/app.css",
        "/nope",
    ],
)
def test_datasette_is_the_same_with_and_without(
    datasette: str, before_datasette: Sidecar, bearing: str, target: str
) -> None:
    direct, through = (
        fetch(url, "GET", target, [("Host", "data.example"), bearer(bearing)])
        for url in (datasette, before_datasette.url)
    )
    if b"query_ms" in direct.body or b"Queries took" in direct.body:
        assert abs(len(direct.body) - len(through.body)) < 200
        direct, through = (answer._replace(body=without_timings(answer.body)) for answer in (direct, through))
    assert_same(direct._replace(headers=unmeasured(direct)), through._replace(headers=unmeasured(through)))


def unmeasured(answer: ClientResponse) -> list[tuple[str, str]]:
    """Without the length of a body that says how long it took."""
    return [(name, value) for name, value in answer.headers if name.lower() != "content-length"]


def without_timings(body: bytes) -> bytes:
    return re.sub(rb'(?:"query_ms": ?|Queries took )[0-9.e-]+', b"", body)


def test_a_streamed_export_is_the_same_with_and_without(
    datasette: str, before_datasette: Sidecar, bearing: str
) -> None:
    target = "/shop/orders.csv?_stream=on"
    direct, through = (fetch(url, "GET", target, [bearer(bearing)]) for url in (datasette, before_datasette.url))
    assert_same(direct, through)
    assert through.body.count(b"\n") > 2_000


def test_nobody_reads_them_without_a_token(before_httpbin: Sidecar, before_datasette: Sidecar) -> None:
    for gate in (before_httpbin, before_datasette):
        assert fetch(gate.url, "GET", "/").status == 401
