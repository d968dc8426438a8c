"""Parsed responses: the valid, the rejected, and that splitting the bytes changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http import response_parser as answer
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INFORMATIONAL,
    BadResponse,
    ResponseHead,
    ResponseParser,
)


class Recorder:
    """Records the calls of a parser, body data joined."""

    def __init__(self, *, to_head_request: bool = False) -> None:
        self.events: list[Any] = []
        self.parser = ResponseParser(self)
        self.parser.begin(to_head_request=to_head_request)

    def on_informational(self, head: ResponseHead) -> None:
        self.events.append((head.status, head.reason, head.headers))

    def on_head(self, head: ResponseHead) -> None:
        self.events.append((head.status, head.reason, head.headers))

    def on_data(self, data: bytes) -> None:
        assert data
        if isinstance(self.events[-1], bytes):
            self.events[-1] += data
        else:
            self.events.append(data)

    def on_end(self, trailers: HeaderList) -> None:
        self.events.append(("end", trailers, self.parser.reusable))

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        self.on_head(head)
        self.on_data(body)
        self.on_end([])

    def feed(self, *parts: bytes, eof: bool = False) -> list[Any]:
        try:
            for part in parts:
                self.parser.feed(part)
        except BadResponse:
            self.events.append("bad")
        else:
            if eof and not self.parser.feed_eof():
                self.events.append("broken off")
        return self.events


def read(data: bytes, *, eof: bool = False, to_head_request: bool = False) -> list[Any]:
    return Recorder(to_head_request=to_head_request).feed(data, eof=eof)


def body_of(events: list[Any]) -> bytes:
    return b"".join(event for event in events if isinstance(event, bytes))


def is_bad(data: bytes) -> bool:
    return bool(read(data)[-1:] == ["bad"])


def test_a_head_is_read_as_it_was_written() -> None:
    events = read(
        b"HTTP/1.1 203 Non Auth\xe9\r\nX-B:1\r\nx-a: \t a b \t\r\nX-B: 2\r\nEmpty:\r\nContent-Length: 2\r\n\r\nok"
    )

    headers = [(b"X-B", b"1"), (b"x-a", b"a b"), (b"X-B", b"2"), (b"Empty", b""), (b"Content-Length", b"2")]
    assert events == [(203, b"Non Auth\xe9", headers), b"ok", ("end", [], True)]


# X17
@pytest.mark.parametrize("line", [b"HTTP/1.1 299 ", b"HTTP/1.1 299"])
def test_a_reason_may_be_missing(line: bytes) -> None:
    assert read(line + b"\r\nContent-Length: 0\r\n\r\n")[0][:2] == (299, b"")


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\n", False),
    ],
)
def test_a_connection_goes_on_only_if_nothing_says_otherwise(head: bytes, reusable: bool) -> None:
    assert read(head + b"Content-Length: 0\r\n\r\n")[-1] == ("end", [], reusable)


# F21, P0-S9
@pytest.mark.parametrize("surplus", [b"\r\n", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
def test_after_surplus_bytes_a_connection_never_serves_again(surplus: bytes) -> None:
    for framed in (b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"):
        events = read(b"HTTP/1.1 200 OK\r\n" + framed + surplus)

        assert body_of(events) == b"ok"
        assert events[-1] == ("end", [], False)


# F22, X02
@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_204_and_304_end_with_their_head(status: int, framing: bytes) -> None:
    head = b"HTTP/1.1 %d X\r\n%b\r\n" % (status, framing)

    assert read(head)[-1] == ("end", [], True)
    # What follows was not asked for.
    assert read(head + b"hello")[-1] == ("end", [], False)
    assert body_of(read(head + b"hello")) == b""


# F22, X01
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_the_answer_to_head_ends_with_its_head(framing: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n%b\r\n" % framing

    assert read(head, to_head_request=True)[-1] == ("end", [], True)
    assert read(head + b"hello", to_head_request=True)[-1] == ("end", [], False)


# F22
def test_205_is_read_by_its_length() -> None:
    assert body_of(read(b"HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nok")) == b"ok"


# X03
def test_interim_responses_come_before_the_answer_and_have_no_body() -> None:
    events = read(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    )

    assert [event[0] for event in events] == [100, 103, 200, "end"]
    assert events[1][2] == [(b"Link", b"</a>"), (b"Content-Length", b"7")]


# B6
def test_interim_responses_have_an_end() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"

    assert read(interim * MAX_INFORMATIONAL + b"HTTP/1.1 204 X\r\n\r\n")[-1] == ("end", [], True)
    assert is_bad(interim * (MAX_INFORMATIONAL + 1))


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", False),
        (b"HTTP/1.1 200 OK\r\nX: y", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False),
        (b"", False),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", True),
        (b"HTTP/1.0 200 OK\r\n\r\n", True),
    ],
)
# X08, X09
def test_only_an_answer_without_a_length_ends_with_its_connection(data: bytes, whole: bool) -> None:
    assert read(data, eof=True)[-1] == (("end", [], False) if whole else "broken off")


def test_chunks_are_read_with_their_extensions_and_trailers() -> None:
    events = read(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'3;a=b\r\nabc\r\n00A ; q="1;2"\r\n0123456789\r\n0\r\nX-Sum: 1\r\nx-other:2\r\n\r\n'
    )

    assert body_of(events) == b"abc0123456789"
    assert events[-1] == ("end", [(b"X-Sum", b"1"), (b"x-other", b"2")], True)


# F22, H18, B6
@pytest.mark.parametrize(
    "head",
    [
        b"\r\nHTTP/1.1 200 OK\r\n",
        b" HTTP/1.1 200 OK\r\n",
        b"HTTP/2.0 200 OK\r\n",
        b"HTTP/1.2 200 OK\r\n",
        b"http/1.1 200 OK\r\n",
        b"HTTP/1.1  200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 099 OK\r\n",
        b"HTTP/1.1 600 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 200 O\x00K\r\n",
        b"HTTP/1.1 200 O\rK\r\n",
        b"HTTP/1.1 200 OK\n",
        b"ICY 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n",
        *(
            b"HTTP/1.1 200 OK\r\n" + field
            for field in (
                b"X-A : 1\r\n",
                b": 1\r\n",
                b"X-A\r\n",
                b"X A: 1\r\n",
                b"X-\xe9: 1\r\n",
                b" X-A: 1\r\n",
                b"X-A: 1\r\n folded\r\n",
                b"X-A: 1\r\n\tfolded\r\n",
                b"X-A: 1\nX-B: 2\r\n",
                b"X-A: 1\rX-B: 2\r\n",
                b"X-A: \x00\r\n",
                b"X-A: \x7f\r\n",
                b"X-A: \x0b\r\n",
                b"Content-Length: 2\r\nContent-Length: 3\r\n",
                b"Content-Length: 2\r\nContent-Length: 2\r\n",
                b"Content-Length: 2, 2\r\n",
                b"Content-Length: +2\r\n",
                b"Content-Length: -2\r\n",
                b"Content-Length: 0x2\r\n",
                b"Content-Length: 02\r\n",
                b"Content-Length: 1_0\r\n",
                b"Content-Length:\r\n",
                b"Content-Length: \xb2\r\n",
                b"Content-Length: 1234567890123456789\r\n",
                b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
                b"Transfer-Encoding: gzip, chunked\r\n",
                b"Transfer-Encoding: chunked, identity\r\n",
                b"Transfer-Encoding: identity\r\n",
                b"Transfer-Encoding: xchunked\r\n",
                b"Transfer-Encoding: \x0bchunked\r\n",
                b"Transfer-Encoding: chunked;a\r\n",
                b"Transfer-Encoding:\r\n",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            )
        ),
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert is_bad(head + b"\r\nok")


# F22
@pytest.mark.parametrize("size", [b"3 ", b"3\t \t", b"03   ", b"3;x ", b"3 ;x=y\t"])
def test_blanks_behind_a_chunk_size_are_read_over(size: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert read(head + size + b"\r\nabc\r\n0  \r\n\r\n")[1:] == [b"abc", ("end", [], True)]


# F22
@pytest.mark.parametrize(
    "chunks",
    [
        b"0x3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"3 0\r\nabc\r\n",
        b"3 \n\r\nabc\r\n",
        b"\r\nabc\r\n",
        b"g\r\n",
        b"3_0\r\n",
        b"1234567890abcdef0\r\n",
        b"3\n\r\nabc\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"3;a\rb\r\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcXX",
        b"3;" + b"a" * 5000,
        b"0\r\nX-A : 1\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nX-A: 1\nX-B: 2\r\n\r\n",
        b"0\r\n" + b"X-A: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        b"0\r\nX-A: " + b"a" * MAX_HEAD_BYTES,
    ],
)
def test_bad_chunks_are_refused(chunks: bytes) -> None:
    assert is_bad(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)


# B6
def test_heads_have_a_bound_in_bytes_and_in_fields() -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
    room = MAX_HEAD_BYTES - len(start + b"X: \r\n\r\n")

    assert read(start + b"X: " + b"a" * room + b"\r\n\r\n")[-1] == ("end", [], True)
    assert is_bad(start + b"X: " + b"a" * (room + 1) + b"\r\n\r\n")
    assert is_bad(start + b"X: " + b"a" * MAX_HEAD_BYTES)
    assert read(start + b"a:\r\n" * (MAX_FIELDS - 1) + b"\r\n")[-1] == ("end", [], True)
    assert is_bad(start + b"a:\r\n" * MAX_FIELDS + b"\r\n")


def test_what_is_no_http_is_refused_with_its_first_bytes() -> None:
    assert is_bad(b"S")
    assert is_bad(b"HTTP/2")
    assert read(b"HTTP/1") == []


def test_a_reader_that_stops_is_recorder_no_more() -> None:
    for stops_at in ("on_informational", "on_head", "on_data"):
        recorder = Recorder()

        def stop(*_: object, recorder: Recorder = recorder) -> None:
            recorder.parser.stop()

        setattr(recorder, stops_at, stop)
        recorder.feed(b"HTTP/1.1 102 P\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        assert ("end", [], True) not in recorder.events
        assert len(recorder.events) == ("on_informational", "on_head", "on_data").index(stops_at)


def test_one_answer_after_another_is_read() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok")
        recorder.parser.begin(to_head_request=True)
        recorder.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        recorder.parser.begin(to_head_request=False)

    assert recorder.events.count(("end", [], True)) == 6


_TEXT = st.binary(max_size=12).map(
    lambda data: bytes(byte for byte in data if byte not in b"\x00\r\n\x7f" and byte > 31)
)
_DATA = st.binary(max_size=60)
_BREAKAGE = st.one_of(
    st.just(lambda data: data),
    st.tuples(st.integers(0, 300), st.sampled_from([b"\r", b"\n", b"\x00", b" ", b"x", b"\r\n", b""])).map(
        lambda where: lambda data: data[: where[0]] + where[1] + data[where[0] + 1 :]
    ),
)


@st.composite
def _responses(draw: st.DrawFn) -> bytes:
    """Responses of every framing, about half of them with a fault."""
    data = b"".join(
        draw(st.lists(st.sampled_from([b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 103 E\r\nA: b\r\n\r\n"]), max_size=2))
    )
    fields = b"".join(b"X-%d: %b\r\n" % pair for pair in enumerate(draw(st.lists(_TEXT, max_size=3))))
    body = draw(_DATA)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    data += b"HTTP/1.1 200 OK\r\n" + fields
    if framing == "length":
        data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    elif framing == "close":
        data += b"\r\n" + body
    else:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in draw(st.lists(_DATA, max_size=4)) if part)
        data += (
            b"Transfer-Encoding: chunked\r\n\r\n"
            + chunks
            + b"0\r\n"
            + draw(st.sampled_from([b"", b"T: 1\r\n"]))
            + b"\r\n"
        )
    changed: bytes = draw(_BREAKAGE)(data)
    return changed + draw(st.sampled_from([b"", b"", b"surplus"]))


@given(_responses(), st.lists(st.integers(1, 40), max_size=60), st.booleans())
def test_however_the_bytes_are_cut_the_result_is_the_same(data: bytes, cuts: list[int], to_head_request: bool) -> None:
    parts = []
    rest = data
    for cut in cuts:
        parts.append(rest[:cut])
        rest = rest[cut:]
    parts = [part for part in [*parts, rest] if part]
    cut_up = Recorder(to_head_request=to_head_request).feed(*parts, eof=True)

    def comparable(events: list[Any]) -> list[Any]:
        # Whether a surplus is seen with the end or after it is a matter of cuts.
        return [event[:2] if isinstance(event, tuple) and event[0] == "end" else event for event in events]

    assert comparable(cut_up) == comparable(read(data, eof=True, to_head_request=to_head_request))


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
)
def test_no_bytes_make_it_fail_otherwise(data: bytes, start: bytes) -> None:
    read(start + data, eof=True)


def test_what_was_read_before_is_read_alike_whatever_came_between() -> None:
    def the_same(data: bytes) -> bool:
        return read(data) == read(data) == read(data)

    good = b"HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: 2\r\n\r\nok"
    assert the_same(good)
    assert the_same(good.replace(b"\r\nX", b"\r\nConnection: close\r\nX"))
    assert the_same(good.replace(b"200", b"204").replace(b"ok", b""))
    # Lines that are good alone, and never together.
    for bad in (
        good.replace(b"X: 1", b"Content-Length: 2"),
        good.replace(b"X: 1", b"Transfer-Encoding: chunked"),
        good.replace(b"X: 1\r\nContent-Length: 2", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        good.replace(b"1.1 200", b"1.0 200").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    ):
        assert the_same(bad)
        assert is_bad(bad)
    assert read(good)[1:] == [b"ok", ("end", [], True)]


def test_of_what_is_read_little_is_kept() -> None:
    for number in range(3000):
        filling = b"%b%d" % (b"x" * (number % 200), number)
        read(b"HTTP/1.1 200 OK\r\nX: %b\r\nY: %b\r\nContent-Length: 2\r\n\r\nok" % (filling, b"y" * (number % 3000)))

        for kept in (answer._fields, answer._heads):
            assert 0 < len(kept) <= 512
            assert max(map(len, kept)) <= 1024


@pytest.mark.parametrize(
    ("sent", "whole"),
    [
        (b"3\r\nabc\r\n4;x=1\r\ndefg\r\n0\r\n\r\n", b"abcdefg"),
        (b"B\r\na\r\n0\r\n\r\nbcd\r\n0\r\n\r\n", b"a\r\n0\r\n\r\nbcd"),
        (b"7\r\na\r\n0\r\n\r\n", None),
        (b"3\r\nabc\r\n0\r\nX: 1\r\n\r\n", None),
        (b"3\r\nabc\r\n0\r\n\r\n0\r\n\r\n", None),
        (b"4\r\nabc\r\n0\r\n\r\n", None),
        (b"3\r\nabc\r\n", None),
        (b"0\r\n\r\n", None),
    ],
)
def test_chunks_that_come_whole_are_told_at_once_and_are_what_they_are_in_parts(
    sent: bytes, whole: bytes | None
) -> None:
    bodies: list[bytes] = []

    class Told(Recorder):
        def on_full_response(self, head: ResponseHead, body: bytes) -> None:
            bodies.append(body)
            super().on_full_response(head, body)

    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent
    at_once = Told().feed(data)
    assert bodies == ([] if whole is None else [whole])
    for cut in range(1, len(data)):
        # What follows a response in a read of its own is not the parser's to judge.
        assert Recorder().feed(data[:cut], data[cut:])[:2] == at_once[:2]


# A length in a trailer is none, and no fault: it is dropped where trailers are (RFC 9110 section 6.5.1).
@pytest.mark.parametrize("line", [b"Content-Length: x", b"Content-Length: 5", b"Transfer-Encoding: gzip"])
def test_trailers_frame_nothing(line: bytes) -> None:
    name, _, value = line.partition(b": ")
    events = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + line + b"\r\n\r\n")

    assert events[1:] == [b"ok", ("end", [(name, value)], True)]
