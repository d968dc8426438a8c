"""httpbin answers the same with and without the proxy between."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.forward.conftest import Pair
from tests.servers import ClientResponse, fetch
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow

# What differs from one answer to the next, or says how this connection is framed.
_OF_THE_MOMENT = {"date", "connection", "keep-alive", "transfer-encoding", "x-request-id"}

# A name that leads nowhere, so that what httpbin says about its own URL does not differ by port.
HOST = ("Host", "bin.example")


def comparable(answer: ClientResponse) -> tuple[int, list[tuple[str, str]], bytes]:
    # Over HTTP/2 nginx leaves out the type of no content.
    skipped = _OF_THE_MOMENT | ({"content-type"} if answer.status == 204 else set())
    headers = [(name.lower(), value) for name, value in answer.headers if name.lower() not in skipped]
    return answer.status, headers, answer.body


def same(
    pair: Pair, method: str, target: str, headers: tuple[tuple[str, str], ...] = (), body: Any = None
) -> ClientResponse:
    """Asks twice, compares, and gives the answer that came through the proxy."""
    direct = fetch(pair.direct, method, target, (HOST, *headers), body)
    proxied = fetch(pair.proxied, method, target, (HOST, *headers), body)
    assert comparable(proxied) == comparable(direct)
    assert len(proxied.get_all("date")) == 1
    return proxied


# X24
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT"])
def test_every_method_passes(httpbin: Pair, method: str) -> None:
    same(httpbin, method, "/status/200")
    same(httpbin, method, "/html")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_bodies_go_up_with_length_and_in_chunks(httpbin: Pair, method: str) -> None:
    data = bytes(range(256)) * 20
    for body, arrives in ((data, data), ([data[:1000], data[1000:]], data), (b"", b"")):
        answer = json.loads(fetch(httpbin.proxied, method, "/anything", body=body).body)
        arrived = answer["data"].removeprefix("data:application/octet-stream;base64,")

        assert answer["method"] == method
        assert base64.b64decode(arrived) == arrives


# X02, X16, X17
@pytest.mark.parametrize(
    "status", [*range(200, 209), 226, 299, *range(300, 309), *range(400, 432), 451, 499, *range(500, 512), 599]
)
def test_every_status_passes_and_no_redirect_is_followed(httpbin: Pair, status: int) -> None:
    answer = same(httpbin, "GET", f"/status/{status}")

    assert answer.status == status


# X16
@pytest.mark.parametrize(
    "target", ["/redirect/3", "/absolute-redirect/2", "/redirect-to?url=http%3A%2F%2Fevil.example%2F"]
)
def test_redirects_are_the_clients_to_follow(httpbin: Pair, target: str) -> None:
    answer = same(httpbin, "GET", target)

    assert answer.status == 302
    assert answer.get_all("location")


# X14
@pytest.mark.parametrize("coding", ["gzip", "deflate", "brotli"])
def test_coded_bodies_are_not_decoded(httpbin: Pair, coding: str) -> None:
    headers = (("Accept-Encoding", "gzip, deflate, br"),)
    direct = fetch(httpbin.direct, "GET", f"/{coding}", headers)
    proxied = fetch(httpbin.proxied, "GET", f"/{coding}", headers)

    assert proxied.get_all("content-encoding") == direct.get_all("content-encoding") != []
    assert proxied.get_all("content-length") == [str(len(proxied.body))]
    with pytest.raises(ValueError):
        json.loads(proxied.body)
    if coding == "gzip":
        assert json.loads(gzip.decompress(proxied.body))["headers"]["Accept-Encoding"] == headers[0][1]


# X15, P0-S8
def test_cookies_are_set_one_by_one_and_kept_by_nobody(httpbin: Pair) -> None:
    answer = same(httpbin, "GET", "/cookies/set?a=1&b=2&c=3")

    assert len(answer.get_all("set-cookie")) == 3
    assert json.loads(same(httpbin, "GET", "/cookies").body) == {"cookies": {}}
    same(httpbin, "GET", "/cookies", (("Cookie", "a=1; b=2"),))


def test_repeated_headers_of_an_answer_stay_repeated(httpbin: Pair) -> None:
    same(httpbin, "GET", "/response-headers?Vary=a&Vary=b&X-Odd=%C3%A9")


# X05
@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_go_up_and_come_down_whole(httpbin: Pair, chunked: bool) -> None:
    data = b"0123456789abcdef" * (10_000_000 // 16)
    body = [data[at : at + 100_000] for at in range(0, len(data), 100_000)] if chunked else data
    answer = fetch(httpbin.proxied, "POST", "/post", (("Content-Type", "text/plain"),), body)

    assert len(answer.body) > len(data)
    assert hashlib.sha256(json.loads(answer.body)["data"].encode()).digest() == hashlib.sha256(data).digest()


def test_streamed_bytes_are_the_same(httpbin: Pair) -> None:
    answer = same(httpbin, "GET", "/stream-bytes/102400?seed=7&chunk_size=1000")

    assert len(answer.body) == 102_400


def test_a_stream_of_lines_is_the_same_stream(httpbin: Pair) -> None:
    direct, proxied = (fetch(url, "GET", "/stream/100", (HOST,)) for url in httpbin)

    assert proxied.body.count(b"\n") == 100
    assert [json.loads(line)["id"] for line in proxied.body.splitlines()] == list(range(100))
    assert len(proxied.get_all("transfer-encoding")) == len(direct.get_all("transfer-encoding"))


# X10
def test_what_drips_is_not_held_back(httpbin: Pair) -> None:
    parts = urlsplit(httpbin.proxied)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=HANG_SECONDS)
    connection.request("GET", "/drip?duration=2&numbytes=4&delay=0")
    response = connection.getresponse()
    arrivals = []
    while response.read(1):
        arrivals.append(time.monotonic())
    connection.close()

    assert len(arrivals) == 4
    assert arrivals[-1] - arrivals[0] > 1


# X04
def test_an_expectation_is_met(httpbin: Pair) -> None:
    answer = fetch(httpbin.proxied, "POST", "/post", (("Expect", "100-continue"),), b"a=1")

    assert answer.status == 200


@pytest.mark.parametrize("span", ["bytes=0-9", "bytes=100-", "bytes=-5", "bytes=5-3", "bytes=9999999-"])
def test_ranges_are_the_backends_to_serve(httpbin: Pair, span: str) -> None:
    same(httpbin, "GET", "/range/1024", (("Range", span),))


@pytest.mark.parametrize("headers", [(("If-None-Match", "abc"),), (("If-Match", "other"),)])
def test_conditional_requests_are_the_backends_to_judge(httpbin: Pair, headers: tuple[tuple[str, str], ...]) -> None:
    same(httpbin, "GET", "/etag/abc", headers)


# X01
@pytest.mark.parametrize("target", ["/image/png", "/bytes/1000?seed=1", "/html", "/stream/5"])
def test_head_says_what_get_says(httpbin: Pair, target: str) -> None:
    answer = same(httpbin, "HEAD", target)

    assert answer.body == b""


@pytest.mark.parametrize("target", ["/image/png", "/image/webp", "/encoding/utf8", "/xml", "/bytes/5000?seed=3"])
def test_bodies_of_every_kind_are_the_same(httpbin: Pair, target: str) -> None:
    same(httpbin, "GET", target)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/basic-auth/u/p", ()),
        ("/basic-auth/u/p", (("Authorization", "Basic dTpw"),)),
        ("/bearer", (("Authorization", "Bearer abc"),)),
        ("/hidden-basic-auth/u/p", ()),
    ],
)
def test_authorization_is_passed_on(httpbin: Pair, target: str, headers: tuple[tuple[str, str], ...]) -> None:
    same(httpbin, "GET", target, headers)


# P0-S10, X18, H10
def test_exactly_the_clients_headers_arrive(httpbin: Pair) -> None:
    headers = (HOST, ("X-A", "1"), ("X-Forwarded-For", "6.6.6.6"), ("Connection", "close, X-Gone"), ("X-Gone", "1"))
    answer = json.loads(fetch(httpbin.proxied, "GET", "/anything?show_env=1", headers).body)

    assert answer["headers"] == {
        "Host": "bin.example",
        "X-A": "1",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": "bin.example",
        "X-Forwarded-Port": "80",
        "X-Forwarded-Proto": "http",
        "X-Real-Ip": "127.0.0.1",
    }
    assert answer["origin"] == "127.0.0.1"


# P0-S6, X23
@pytest.mark.parametrize(
    "target",
    [
        "/anything/a%2Fb/../c",
        "/anything/%C3%A9/%F0%9F%98%80",
        "/anything/x/./y",
        "/anything/a;b=c?d=e&d=f&g=%26",
        "/anything/x?y?z",
        "/anything/%7E~%41",
    ],
)
def test_odd_paths_are_the_same_paths(httpbin: Pair, target: str) -> None:
    direct, proxied = (json.loads(fetch(url, "GET", target, (HOST,)).body) for url in httpbin)

    assert proxied["url"] == direct["url"]
    assert proxied["args"] == direct["args"]
