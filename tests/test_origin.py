"""Whether a browser's request with a cookie may change something (S21, U12, W01)."""

from __future__ import annotations

import pytest

from gatekeeper.origin import is_same_origin, may_change

HOST = (b"Host", b"app.example")
SAME = (b"Origin", b"https://app.example")

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
def test_an_origin_is_the_same_or_it_is_not(
    origins: list[bytes], hosts: list[bytes], scheme: str, same: bool, method: str
) -> None:
    # S21, W01
    headers = [(b"Origin", origin) for origin in origins] + [(b"Host", host) for host in hosts]
    assert is_same_origin(headers, scheme=scheme) is same
    assert may_change(headers, method=method, scheme=scheme) is same


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    "headers", [[], [HOST], [HOST, (b"Origin", b"https://evil.example")], [(b"sec-fetch-site", b"cross-site")]]
)
def test_a_safe_method_changes_nothing_so_it_may(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert may_change(headers, method=method, scheme="https")


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
    # The one that says so suffices (contract, section 3)
    ([b"same-origin"], [b"null"], True),
    ([b"cross-site"], [b"https://app.example"], True),
    ([], [b"https://app.example"], True),
]


@pytest.mark.parametrize(("sites", "origins", "may"), FETCHES)
def test_a_browser_says_where_a_request_is_from(sites: list[bytes], origins: list[bytes], may: bool) -> None:
    # S21, U12
    headers = [HOST, *((b"Sec-Fetch-Site", site) for site in sites), *((b"Origin", origin) for origin in origins)]
    assert may_change(headers, method="DELETE", scheme="https") is may


def test_header_names_have_no_case() -> None:
    assert may_change([(b"SEC-FETCH-SITE", b"none")], method="POST", scheme="https")
    assert is_same_origin([(b"oRIGIN", SAME[1]), (b"HOST", HOST[1])], scheme="https")
