"""The headers that pass through the proxy, and those that do not."""

from __future__ import annotations

import pytest

from gatekeeper.http.forwarding import Arrival, request_headers, response_headers
from gatekeeper.http.headers import HeaderList, get, get_all

OWN = frozenset({b"x-user-id", b"x-session-id", b"x-request-id", b"x-gatekeeper-degraded"})
STRANGER = Arrival(peer="203.0.113.9", client="203.0.113.9", scheme="http", trusted=False)
BALANCER = Arrival(peer="10.0.0.1", client="203.0.113.5", scheme="http", trusted=True)
HOST = (b"host", b"shop.example")


def sent(*headers: tuple[bytes, bytes], arrival: Arrival = STRANGER) -> HeaderList:
    return request_headers([HOST, *headers], arrival, OWN)


def names(headers: HeaderList) -> set[bytes]:
    return {name for name, _ in headers}


def test_what_is_end_to_end_passes_with_its_order_and_repetition() -> None:
    headers = [
        (b"accept", b"a"),
        (b"authorization", b"Bearer x"),
        (b"cookie", b"a=1"),
        (b"accept", b"b"),
        (b"cookie", b"b=2"),
        (b"x-http-method-override", b"GET"),
        (b"expect", b"100-continue"),
        (b"x_custom", b"\xe9\xff"),
    ]

    assert sent(*headers)[: len(headers) + 1] == [HOST, *headers]


# H06, F18
@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-connection",
        b"proxy-authorization",
        b"http2-settings",
        b"transfer_encoding",
        b"proxy.connection",
    ],
)
def test_hop_by_hop_headers_stop_here(name: bytes) -> None:
    assert name not in names(sent((name, b"x")))


# H04, RFC 9110 section 7.6.1
def test_what_connection_names_stops_here_in_any_case_and_from_any_line() -> None:
    headers = sent((b"connection", b"close, X-One"), (b"x-one", b"1"), (b"x-two", b"2"), (b"connection", b"x-TWO ,,"))

    assert names(headers).isdisjoint({b"connection", b"x-one", b"x-two", b"close"})


# H04, H05
@pytest.mark.parametrize(
    "name",
    [
        b"x-user-id",
        b"x-session-id",
        b"x-request-id",
        b"x-gatekeeper-degraded",
        b"authorization",
        b"cookie",
        b"host",
        b"content-length",
        b"content-type",
    ],
)
def test_connection_cannot_make_these_disappear(name: bytes) -> None:
    headers = sent((b"connection", b"close, " + name.title()), (name, b"7"))

    assert b"7" in get_all(headers, name)


# H04
@pytest.mark.parametrize("arrival", [STRANGER, BALANCER])
def test_connection_cannot_make_forwarding_headers_disappear(arrival: Arrival) -> None:
    named = b"X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port, X-Real-IP"

    assert {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip"} <= names(
        sent((b"connection", named), (b"x-forwarded-proto", b"https"), arrival=arrival)
    )


# F01
def test_content_length_beside_transfer_encoding_is_not_sent_on() -> None:
    assert names(sent((b"content-length", b"4"), (b"transfer-encoding", b"chunked"))).isdisjoint(
        {b"content-length", b"transfer-encoding"}
    )


# H10, I01
def test_a_stranger_has_no_say_about_forwarding() -> None:
    headers = sent(
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"evil.example"),
        (b"x-forwarded-port", b"1"),
        (b"x-forwarded-prefix", b"//evil"),
        (b"x-real-ip", b"6.6.6.6"),
        (b"forwarded", b"for=6.6.6.6;host=evil.example;proto=https"),
    )

    assert headers == [
        HOST,
        (b"x-forwarded-for", b"203.0.113.9"),
        (b"x-real-ip", b"203.0.113.9"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"shop.example"),
        (b"x-forwarded-port", b"80"),
    ]


# H08, H10
@pytest.mark.parametrize("name", [b"x-forwarded-uri", b"x-forwarded-method", b"x-forwarded-ssl", b"x-forwarded-scheme"])
def test_lesser_known_forwarding_headers_of_a_stranger_are_removed(name: bytes) -> None:
    assert name not in names(sent((name, b"x")))
    assert name in names(sent((name, b"x"), arrival=BALANCER))


def test_a_trusted_peer_is_believed_and_appended_to() -> None:
    headers = sent(
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"x-forwarded-for", b"203.0.113.5"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"www.example"),
        (b"x-forwarded-port", b"8443"),
        (b"x-forwarded-prefix", b"/shop"),
        (b"x-real-ip", b"203.0.113.5"),
        (b"forwarded", b"for=203.0.113.5"),
        arrival=BALANCER,
    )

    assert headers == [
        HOST,
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"www.example"),
        (b"x-forwarded-port", b"8443"),
        (b"x-forwarded-prefix", b"/shop"),
        (b"x-real-ip", b"203.0.113.5"),
        (b"forwarded", b"for=203.0.113.5"),
        (b"x-forwarded-for", b"6.6.6.6, 203.0.113.5, 10.0.0.1"),
    ]


def test_what_a_trusted_peer_does_not_say_is_what_gatekeeper_saw() -> None:
    headers = sent(arrival=BALANCER)

    assert get(headers, b"x-forwarded-for") == b"10.0.0.1"
    assert get(headers, b"x-real-ip") == b"203.0.113.5"
    assert get(headers, b"x-forwarded-proto") == b"http"


def test_a_peer_without_an_address_adds_none() -> None:
    headers = sent(arrival=Arrival(peer=None, client="unix:", scheme="http", trusted=False))

    assert names(headers).isdisjoint({b"x-forwarded-for", b"x-real-ip"})


# H02
@pytest.mark.parametrize("arrival", [STRANGER, BALANCER])
@pytest.mark.parametrize(
    "name",
    [b"x_forwarded_for", b"x.forwarded-proto", b"x_real_ip", b"x_request_id", b"content_length", b"x_user_id"],
)
def test_no_second_spelling_of_what_gatekeeper_says_passes(name: bytes, arrival: Arrival) -> None:
    assert name not in names(sent((name, b"x"), arrival=arrival))


def test_gatekeepers_own_headers_pass_only_where_they_are_its_own() -> None:
    headers = sent((b"x-gatekeeper-degraded", b"1"), (b"x-gatekeeper-other", b"1"))

    assert b"x-gatekeeper-degraded" in names(headers)
    assert b"x-gatekeeper-other" not in names(headers)


@pytest.mark.parametrize(
    ("host", "scheme", "port"),
    [
        (b"shop.example", "http", b"80"),
        (b"shop.example", "https", b"443"),
        (b"shop.example:8080", "http", b"8080"),
        (b"[::1]", "http", b"80"),
        (b"[::1]:81", "https", b"81"),
        (b"1234", "http", b"80"),
    ],
)
def test_the_port_is_the_one_that_the_client_meant(host: bytes, scheme: str, port: bytes) -> None:
    headers = request_headers([(b"host", host)], STRANGER._replace(scheme=scheme), OWN)

    assert get(headers, b"x-forwarded-port") == port


def test_without_host_there_is_no_forwarded_host() -> None:
    assert b"x-forwarded-host" not in names(request_headers([], STRANGER, OWN))


def test_no_via_is_added() -> None:
    assert get_all(sent((b"via", b"1.1 cdn")), b"via") == [b"1.1 cdn"]
    assert b"via" not in names(sent())


# X15, H17
def test_an_answer_passes_as_it_is_but_for_hop_by_hop_headers() -> None:
    headers = [
        (b"server", b"Backend"),
        (b"set-cookie", b"a=1"),
        (b"connection", b"keep-alive, X-Foo"),
        (b"vary", b"a"),
        (b"x-foo", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"set-cookie", b"b=2"),
        (b"x-request-id", b"backend's"),
        (b"vary", b"b"),
        (b"upgrade", b"h2c"),
        (b"trailer", b"x"),
        (b"content-length", b"3"),
    ]

    assert response_headers(headers, 200) == [
        (b"server", b"Backend"),
        (b"set-cookie", b"a=1"),
        (b"vary", b"a"),
        (b"set-cookie", b"b=2"),
        (b"vary", b"b"),
        (b"content-length", b"3"),
    ]


# H05
def test_an_answer_cannot_name_its_framing_away() -> None:
    headers = [(b"connection", b"content-length, set-cookie"), (b"content-length", b"3"), (b"set-cookie", b"a=1")]

    assert response_headers(headers, 200) == headers[1:]


# X02
@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_no_length(status: int) -> None:
    assert response_headers([(b"content-length", b"0"), (b"etag", b"x")], status) == [(b"etag", b"x")]


def test_the_length_beside_transfer_encoding_goes() -> None:
    assert response_headers([(b"content-length", b"9"), (b"transfer-encoding", b"chunked")], 200) == []
