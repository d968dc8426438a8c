"""Cross-origin rules: requests with a cookie that may change something, and pages that may read a response (S21, U08,
U12, W01)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http.origins import Origins, is_same_origin

NONE = Origins()
LISTED = Origins(["https://front.example", "http://localhost:3000"])
HOST = (b"host", b"app.example")

# (the Origin headers, the Host headers, scheme, same origin?)
ORIGINS = [
    ([b"https://app.example"], [b"app.example"], "https", True),
    ([b"http://app.example"], [b"app.example"], "http", True),
    ([b"http://app.example:8000"], [b"app.example:8000"], "http", True),
    ([b"HTTPS://APP.example"], [b"app.EXAMPLE"], "https", True),
    ([b"https://app.example"], [b"app.example"], "wss", True),
    ([b"http://app.example"], [b"app.example"], "ws", True),
    ([b"https://[::1]:8443"], [b"[::1]:8443"], "https", True),
    # W01: evil, missing, null, a longer name, another scheme or port
    ([b"https://evil.example"], [b"app.example"], "https", False),
    ([], [b"app.example"], "https", False),
    ([b"null"], [b"app.example"], "https", False),
    ([b""], [b"app.example"], "https", False),
    ([b"https://app.example.evil"], [b"app.example"], "https", False),
    ([b"https://evil.app.example"], [b"app.example"], "https", False),
    ([b"https://app.example@evil.example"], [b"app.example"], "https", False),
    ([b"https://app.example/"], [b"app.example"], "https", False),
    ([b"http://app.example"], [b"app.example"], "https", False),
    ([b"https://app.example"], [b"app.example"], "http", False),
    ([b"https://app.example"], [b"app.example"], "ws", False),
    ([b"wss://app.example"], [b"app.example"], "wss", False),
    ([b"https://app.example:444"], [b"app.example"], "https", False),
    ([b"app.example"], [b"app.example"], "https", False),
    ([b"https://app.example https://evil.example"], [b"app.example"], "https", False),
    # Two of a header are nobody's word
    ([b"https://app.example", b"https://evil.example"], [b"app.example"], "https", False),
    ([b"https://app.example", b"https://app.example"], [b"app.example"], "https", False),
    ([b"https://app.example"], [b"app.example", b"evil.example"], "https", False),
    ([b"https://app.example"], [], "https", False),
    # An empty Host must not make an empty origin equal
    ([b"https://"], [], "https", False),
]  # fmt: skip


@pytest.mark.parametrize(("origins", "hosts", "scheme", "same"), ORIGINS)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "PUT", "post", "GETX", ""])
@pytest.mark.parametrize("allowed", [NONE, LISTED])
def test_an_origin_is_the_same_or_it_is_not(
    origins: list[bytes], hosts: list[bytes], scheme: str, same: bool, method: str, allowed: Origins
) -> None:
    # S21, W01
    headers = [(b"origin", origin) for origin in origins] + [(b"host", host) for host in hosts]
    assert is_same_origin(headers, scheme=scheme) is same
    assert allowed.may_connect(headers, scheme=scheme) is same
    assert allowed.may_change(headers, method=method, scheme=scheme) is same


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    "headers", [[], [HOST], [HOST, (b"origin", b"https://evil.example")], [(b"sec-fetch-site", b"cross-site")]]
)
def test_a_safe_method_changes_nothing_so_it_may(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert NONE.may_change(headers, method=method, scheme="https")


# (the Sec-Fetch-Site headers, the Origin headers, may it?)
FETCHES = [
    ([b"same-origin"], [], True),
    ([b"none"], [], True),
    ([b"same-site"], [], False),
    ([b"cross-site"], [], False),
    ([b""], [], False),
    ([b"Same-Origin"], [], False),
    ([b"same-origin, cross-site"], [], False),
    ([b"same-origin", b"cross-site"], [], False),
    ([b"same-origin", b"same-origin"], [], False),
    ([], [], False),
    ([b"cross-site"], [b"https://evil.example"], False),
    ([b"same-site"], [b"https://other.app.example"], False),
    ([b"cross-site"], [b"null"], False),
    # The one that says so suffices (rule 3.17)
    ([b"same-origin"], [b"null"], True),
    ([b"cross-site"], [b"https://app.example"], True),
    ([], [b"https://app.example"], True),
]


@pytest.mark.parametrize(("sites", "origins", "may"), FETCHES)
@pytest.mark.parametrize("allowed", [NONE, LISTED])
def test_a_browser_says_where_a_request_is_from(
    sites: list[bytes], origins: list[bytes], may: bool, allowed: Origins
) -> None:
    # S21, U12
    headers = [HOST, *((b"sec-fetch-site", site) for site in sites), *((b"origin", origin) for origin in origins)]
    assert allowed.may_change(headers, method="DELETE", scheme="https") is may


# CORS_ORIGINS

NEAR_MISSES = [
    b"https://evil.example", b"null", b"", b"*", b"https://front.example.evil", b"https://evil-front.example",
    b"https://evil.front.example", b"https://frontxexample", b"http://front.example", b"https://front.example:8443",
    b"https://front.example:443", b"https://front.example/", b"https://front.example.", b"HTTPS://front.example",
    b"https://Front.example", b" https://front.example", b"https://front.example\x00", b"https://front.example\xff",
    b"https://front.example,https://evil.example", b"https://front.example http://localhost:3000",
    b"https://user@front.example", b"front.example", b"http://localhost", b"http://localhost:30000",
]  # fmt: skip


@pytest.mark.parametrize("origin", NEAR_MISSES)
def test_a_listed_origin_is_matched_exactly(origin: bytes) -> None:
    # U08, S21, W01
    headers = [HOST, (b"origin", origin), (b"sec-fetch-site", b"cross-site")]
    assert not LISTED.allows(headers)
    assert not LISTED.may_connect(headers, scheme="https")
    assert not LISTED.may_change(headers, method="DELETE", scheme="https")
    assert LISTED.cors_headers(headers) == [(b"vary", b"Origin")]


@pytest.mark.parametrize("origin", [b"https://front.example", b"http://localhost:3000"])
def test_a_listed_origin_may_read_and_change(origin: bytes) -> None:
    # U08: never `*`, and `Vary`
    headers = [HOST, (b"origin", origin), (b"sec-fetch-site", b"cross-site")]
    assert LISTED.may_connect(headers, scheme="wss")
    assert LISTED.may_change(headers, method="DELETE", scheme="https")
    assert LISTED.cors_headers(headers) == [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
    ]
    assert not NONE.may_change(headers, method="DELETE", scheme="https")
    assert NONE.cors_headers(headers) == []


def test_two_origins_are_none() -> None:
    headers = [HOST, (b"origin", b"https://front.example"), (b"origin", b"https://front.example")]
    assert not LISTED.allows(headers)
    assert not LISTED.may_change(headers, method="POST", scheme="https")


def test_without_an_origin_nobody_is_told_anything() -> None:
    assert LISTED.cors_headers([HOST]) == [(b"vary", b"Origin")]
    assert NONE.cors_headers([HOST]) == []
    assert (bool(NONE), bool(LISTED)) == (False, True)


def test_a_preflight_is_told_the_methods_and_the_headers_it_asked_for() -> None:
    headers = [
        HOST,
        (b"origin", b"https://front.example"),
        (b"access-control-request-method", b"DELETE"),
        (b"access-control-request-headers", b"authorization,content-type"),
    ]
    assert LISTED.preflight_headers(headers, methods={"GET", "DELETE"}) == [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", b"https://front.example"),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-methods", b"DELETE, GET"),
        (b"access-control-max-age", b"600"),
        (b"access-control-allow-headers", b"authorization,content-type"),
    ]
    assert (b"access-control-allow-headers", b"") not in LISTED.preflight_headers(headers[:3], methods={"GET"})


@given(st.binary(max_size=60))
def test_no_other_bytes_are_a_listed_origin(origin: bytes) -> None:
    # U08
    listed = origin in {b"https://front.example", b"http://localhost:3000"}
    assert LISTED.allows([HOST, (b"origin", origin)]) is listed
