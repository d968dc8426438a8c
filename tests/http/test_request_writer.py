"""Serialized requests: one framing, no injected line end, valid HTTP only."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_writer import RequestNotForwardable, SerializedHead, chunk, last_chunk, serialize_head

HOST = (b"host", b"a")


def made(
    *headers: tuple[bytes, bytes], method: str = "GET", target: bytes = b"/", has_body: bool = False
) -> SerializedHead:
    return serialize_head(method, target, headers, authority=b"backend:81", has_body=has_body)


def test_a_head_holds_what_was_given_in_its_order() -> None:
    out = made((b"x-b", b"1"), HOST, (b"x-b", b""), (b"x-a", b"\xe9 \t x"), target=b"/%zz?a?")

    assert out == (b"GET /%zz?a? HTTP/1.1\r\nx-b: 1\r\nhost: a\r\nx-b: \r\nx-a: \xe9 \t x\r\n\r\n", 0, False)


def test_a_missing_host_is_the_backends_authority() -> None:
    assert made((b"x-a", b"1")).head == b"GET / HTTP/1.1\r\nHost: backend:81\r\nx-a: 1\r\n\r\n"


# F15
@pytest.mark.parametrize(("value", "length"), [(b"5", 5), (b"0", 0), (b"010", 10)])
def test_a_length_is_written_in_plain_digits(value: bytes, length: int) -> None:
    out = made(HOST, (b"content-length", value), method="POST", has_body=True)

    assert out.head.endswith(b"content-length: %d\r\n\r\n" % length)
    assert (out.length, b"transfer-encoding" in out.head) == (length, False)


# F15
def test_a_body_without_a_length_is_chunked() -> None:
    out = made(HOST, method="POST", has_body=True)

    assert out.head.endswith(b"Transfer-Encoding: chunked\r\n\r\n")
    assert out.length is None


def test_an_expectation_counts_where_there_is_a_body() -> None:
    expect = (b"expect", b"100-Continue")

    assert made(HOST, expect, has_body=True).expects
    assert not made(HOST, expect).expects
    assert not made(HOST, (b"expect", b"other"), has_body=True).expects
    assert b"expect: 100-Continue\r\n" in made(HOST, expect).head


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-a", b"a\nb")],
        [(b"x-a", b"a\rb")],
        [(b"x-a", b"a\r\nx-user-id: 1")],
        [(b"x-a", b"\x00")],
        [(b"x-a", b"\x7f")],
        [(b"x a", b"1")],
        [(b"x-a: b", b"1")],
        [(b"x-a\r\nx-b", b"1")],
        [(b"", b"1")],
        [(b"x-\xe9", b"1")],
        [(b"content-length", b"1, 1")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"")],
        [(b"content-length", b"\xb2")],
        [(b"content-length", b"1"), (b"content-length", b"1")],
        [(b"transfer-encoding", b"chunked")],
    ],
)
def test_a_header_that_http_does_not_allow_is_refused(headers: HeaderList) -> None:
    with pytest.raises(RequestNotForwardable):
        made(HOST, *headers, has_body=True)


@pytest.mark.parametrize("method", ["", "G T", "GET\r\n", "GÉT", "CONNECT"])
def test_a_method_that_is_none_is_refused(method: str) -> None:
    with pytest.raises(RequestNotForwardable):
        made(HOST, method=method)


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\r\n", b"/\xe9", b"/\x00"])
def test_a_target_that_is_none_is_refused(target: bytes) -> None:
    with pytest.raises(RequestNotForwardable):
        made(HOST, target=target)


def test_a_length_without_a_body_is_refused() -> None:
    with pytest.raises(RequestNotForwardable):
        made(HOST, (b"content-length", b"1"))
    assert b"content-length: 0\r\n" in made(HOST, (b"content-length", b"0")).head


def test_trailers_are_checked_as_headers_are() -> None:
    assert last_chunk([]) == b"0\r\n\r\n"
    assert last_chunk([(b"x-sum", b"1")]) == b"0\r\nx-sum: 1\r\n\r\n"
    with pytest.raises(RequestNotForwardable):
        last_chunk([(b"x-sum", b"1\r\n\r\nGET / HTTP/1.1")])


_NAMES = st.binary(min_size=1, max_size=6)
_VALUES = st.binary(max_size=8)


# F15, F16
@given(
    st.lists(st.tuples(_NAMES, _VALUES), max_size=4),
    st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    st.booleans(),
)
def test_another_parser_reads_exactly_what_was_meant(headers: HeaderList, parts: list[bytes], chunked: bool) -> None:
    own = [(name.lower(), value) for name, value in headers]
    length = [] if chunked else [(b"content-length", b"%d" % sum(map(len, parts)))]
    try:
        out = made(HOST, *length, *own, method="POST", has_body=True)
    except RequestNotForwardable:
        return
    sent = out.head + b"".join(chunk(part) if chunked else part for part in parts)
    sent += last_chunk([]) if chunked else b""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(sent)
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    stripped = [(name, value.strip(b" \t")) for name, value in own]
    expected = [HOST, *length, *stripped, *([(b"transfer-encoding", b"chunked")] if chunked else [])]
    assert [(bytes(name), bytes(value)) for name, value in request.headers] == expected
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == b"".join(parts)
    assert reader.trailing_data[0] == b""
