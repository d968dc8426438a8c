"""datasette is the same with and without the proxy between."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.forward.conftest import Pair
from tests.servers import ClientResponse, fetch

pytestmark = pytest.mark.slow

HOST = ("Host", "data.example")


# Pages and JSON tell how long their queries took, so the length too differs from time to time.
_TIMING = re.compile(rb'Queries took [0-9.]+ms|"query_ms": [0-9.]+')


def comparable(answer: ClientResponse) -> tuple[int, list[tuple[str, str]], bytes]:
    skipped = {"date", "connection", "transfer-encoding", "x-request-id"}
    if _TIMING.search(answer.body):
        skipped.add("content-length")
    headers = [(name.lower(), value) for name, value in answer.headers if name.lower() not in skipped]
    return answer.status, headers, _TIMING.sub(b"", answer.body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "target",
    [
        "/shop",
        "/shop/orders/5",
        "/shop/orders/5.json",
        "/shop/orders.json?_shape=array&customer__exact=customer+7",
        "/shop?sql=select+count(*)+from+orders",
        "/-/static/app.css",
        "/shop/none",
        "/shop/orders/",
        "/shop/orders.csv?_size=10&_header=off",
    ],
)
def test_every_page_is_the_same(datasette: Pair, method: str, target: str) -> None:
    direct, proxied = (fetch(url, method, target, (HOST,)) for url in datasette)

    assert comparable(proxied) == comparable(direct)


# X05, X15
def test_a_streamed_export_is_identical_byte_for_byte(datasette: Pair) -> None:
    direct, proxied = (fetch(url, "GET", "/shop/orders.csv?_stream=1&_size=max", (HOST,)) for url in datasette)

    assert comparable(proxied) == comparable(direct)
    assert proxied.get_all("transfer-encoding") == ["chunked"]
    assert proxied.body.count(b"customer ") == 2_000


def test_many_exports_at_once_are_all_whole(datasette: Pair) -> None:
    whole = fetch(datasette.direct, "GET", "/shop/orders.csv?_stream=1&_size=max").body
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: fetch(datasette.proxied, "GET", "/shop/orders.csv?_stream=1&_size=max"), range(16))

        assert all(answer.body == whole for answer in answers)


def test_what_the_api_says_is_the_same(datasette: Pair) -> None:
    direct, proxied = (json.loads(fetch(url, "GET", "/shop/orders.json?_size=50", (HOST,)).body) for url in datasette)

    assert proxied["rows"] == direct["rows"]
    assert proxied["next"] == direct["next"]
    assert len(proxied["rows"]) == 50
