"""The rules for the bytes of a request, without a socket. Ids in comments are those of docs/attacks.md."""

from __future__ import annotations

import itertools
import random

import pytest

from gatekeeper.http.request_body import Body, ChunkedBody, SizedBody
from gatekeeper.http.request_head import HeadReader, Limits, RequestHead, RequestRejected, parse_head, salvage
from gatekeeper.http.websocket_handshake import asks_for_websocket, check_handshake

LIMITS = Limits()


def head(*lines: bytes, request: bytes = b"POST / HTTP/1.1", host: bytes | None = b"a") -> bytes:
    hosts = [] if host is None else [b"Host: " + host]
    return b"".join(line + b"\r\n" for line in (request, *hosts, *lines, b""))


def status_of(raw: bytes, limits: Limits = LIMITS) -> int:
    with pytest.raises(RequestRejected) as refused:
        parse_head(raw, limits)
    return refused.value.status


# What is good


def test_a_head_is_read_as_it_stands() -> None:
    raw = head(b"X-A:  one \t", b"x-a:two", b"Empty: \t ", b"X-Obs: \xe9\xff", request=b"GET /p%2F..;x?q=1?2 HTTP/1.1")
    read = parse_head(raw, LIMITS)
    assert (read.method, read.target, read.version) == ("GET", b"/p%2F..;x?q=1?2", "1.1")
    # H16: bytes over 0x7F in a value are passed as they are.
    assert read.headers[:3] == [(b"host", b"a"), (b"x-a", b"one"), (b"x-a", b"two")]
    assert read.headers[3:] == [(b"empty", b""), (b"x-obs", b"\xe9\xff")]
    assert (read.length, read.keep_alive, read.upgrade) == (0, True, None)
    assert read.size_bytes == len(raw)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Close", False),
        (b"1.1", b"x, close", False),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_a_connection_is_kept_as_its_version_and_headers_say(version: bytes, connection: bytes, kept: bool) -> None:
    raw = head(b"Connection: " + connection, request=b"GET / HTTP/" + version)
    assert parse_head(raw, LIMITS).keep_alive is kept


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ([], 0),
        ([b"Content-Length: 0"], 0),
        ([b"Content-Length: \t35 "], 35),
        ([b"content-length:999999999999999999"], 10**18 - 1),
        ([b"Transfer-Encoding: chunked"], None),
        ([b"transfer-encoding: Chunked"], None),
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"OPTIONS", b"HEAD", b"PROPFIND", b"M-SEARCH"])
def test_a_body_has_the_length_that_its_head_says_whatever_the_method(
    method: bytes, lines: list[bytes], length: int | None
) -> None:
    # F09
    assert parse_head(head(*lines, request=method + b" / HTTP/1.1"), LIMITS).length == length


def test_http_1_0_may_do_without_host_and_is_never_told_to_continue() -> None:
    # P0-S4
    raw = head(b"Content-Length: 1", b"Expect: 100-continue", request=b"POST / HTTP/1.0", host=None)
    assert parse_head(raw, LIMITS).expects_continue is False
    assert parse_head(head(b"Content-Length: 1", b"Expect: 100-Continue"), LIMITS).expects_continue is True
    assert parse_head(head(b"Expect: 100-continue"), LIMITS).expects_continue is False


@pytest.mark.parametrize(
    "host",
    [
        b"a",
        b"A.B.Example.COM.",
        b"my_service:8080",
        b"127.0.0.1:65535",
        b"a:",
        b"[::1]",
        b"[2001:db8::7]:443",
        b"xn--bcher-kva.example",
        b"a%20b",
        b"a~b",
    ],
)
def test_hosts(host: bytes) -> None:
    assert parse_head(head(host=host), LIMITS).headers[0] == (b"host", host)


def test_a_server_as_a_whole_may_be_asked_for_its_options() -> None:
    assert parse_head(head(request=b"OPTIONS * HTTP/1.1"), LIMITS).target == b"*"


# What is not


@pytest.mark.parametrize(
    "line",
    [
        # F11, P0-S4
        b"GET /",
        b"GET / HTTP/0.9",
        b"GET / HTTP/2.0",
        b"PRI * HTTP/2.0",
        b"GET / HTTP/1.32",
        b"GET / HTTP/1.2",
        b"GET / HTTP/01.1",
        b"GET / http/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET / HTTP/1.1\t",
        b"GET /a b HTTP/1.1",
        b"get / HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"G\x00T / HTTP/1.1",
        b"A" * 33 + b" / HTTP/1.1",
        b"/ HTTP/1.1",
        b"",
        # rule 3.1, P0-S7
        b"GET http://evil/x HTTP/1.1",
        b"GET @evil.com/x HTTP/1.1",
        b"GET evil.com:80 HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET ?x HTTP/1.1",
        b"GET x HTTP/1.1",
        b"GET /a#b HTTP/1.1",
        b"GET /a?b#c HTTP/1.1",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET /\x80 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /a\x0bb HTTP/1.1",
        b"GET /a\rb HTTP/1.1",
        b"GET /a\nb HTTP/1.1",
    ],
)
def test_request_lines_that_are_none(line: bytes) -> None:
    assert status_of(head(request=line)) == 400


@pytest.mark.parametrize("line", [b"TRACE / HTTP/1.1", b"CONNECT a:443 HTTP/1.1", b"CONNECT / HTTP/1.0"])
def test_trace_and_connect_are_not_allowed(line: bytes) -> None:
    with pytest.raises(RequestRejected) as refused:
        parse_head(head(request=line), LIMITS)
    assert refused.value.status == 405
    assert b"TRACE" not in dict(refused.value.headers)[b"allow"]


@pytest.mark.parametrize(
    "lines",
    [
        # H11, P0-S4
        [],
        [b"Host: a", b"Host: a"],
        [b"Host: a", b"hOST: b"],
        *(
            [b"Host:" + value]
            for value in (
                b"",
                b" ",
                b"a/public?",
                b"a#",
                b"a?b",
                b"a@evil",
                b"a, b",
                b"a,b",
                b"a b",
                b"a:99999",
                b"a:65536",
                b"a:123456",
                b"a:x",
                b"a:-1",
                b":80",
                b"a\x00",
                b"a\\b",
                b"[::1",
                b"[::g]",
                b"[1.2.3.4]",
                b"::1",
                b"a\xe9",
                b"a%2",
                b"a'b",
            )
        ),
    ],
)
def test_hosts_that_are_none(lines: list[bytes]) -> None:
    assert status_of(head(*lines, host=None)) == 400


@pytest.mark.parametrize("value", [b"", b"a b", b"a@b"])
def test_http_1_0_may_do_without_host_but_not_with_a_bad_one(value: bytes) -> None:
    assert status_of(head(b"Host: " + value, host=None, request=b"GET / HTTP/1.0")) == 400


@pytest.mark.parametrize(
    "line",
    [
        # H13, P0-S3, F10
        b"X-A : b",
        b"X-A\t: b",
        b" X-A: b",
        b"X-A",
        b": b",
        b":",
        b"X-A: b\r\n c",
        b"X-A: b\r\n\tc",
        b"X-A: b\rc",
        b"X-A: b\nX-User-Id: evil",
        b"X-A: b\r\r",
        b"X-A: \x00",
        b"X-A: \x1b",
        b"X-A: \x7f",
        b"X\xc3\xa9: b",
        b"X-User-Id\x85: admin",
        b"X A: b",
        b"X(A): b",
        b"\x0bX-A: b",
    ],
)
def test_header_lines_that_are_none(line: bytes) -> None:
    assert status_of(head(line)) == 400
    assert status_of(head(line, b"X-Last: z")) == 400


@pytest.mark.parametrize(
    "lines",
    [
        # F01
        [b"Content-Length: 4", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 4"],
        [b"Transfer-Encoding: identity", b"Content-Length: 0"],
        # F02
        [b"Content-Length: 1", b"Content-Length: 2"],
        [b"Content-Length: 1", b"Content-Length: 1"],
        *(
            [b"Content-Length:" + value]
            for value in (
                # F02, F03
                b" 1, 1",
                b" 1, 2",
                b" +1",
                b" -1",
                b" 0x1",
                b" 1_0",
                b" 1 0",
                b"",
                b" \xd9\xa1",
                b" 12345678901234567890123",
                b" 010",
                b" 00",
                b" 1.0",
                b" 1e1",
                b" \x0b1",
            )
        ),
        # F04
        *(
            [b"Transfer-Encoding:" + value]
            for value in (
                b" ,chunked",
                b" chunked,",
                b" xchunked",
                b" identity",
                b" chunked, identity",
                b" gzip, chunked",
                b" chunked;foo",
                b" \x0bchunked",
                b" chunked, chunked",
                b"\r\n chunked",
                b' "chunked"',
                b"",
                b" chunked\x00",
            )
        ),
        [b"Transfer-Encoding : chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        # F05
        [b"Transfer_Encoding: chunked", b"Content-Length: 4"],
        [b"Transfer.Encoding: chunked"],
        [b"Content_Length: 4"],
        [b"content~length: 4"],
    ],
)
def test_framing_that_could_be_read_in_two_ways(lines: list[bytes]) -> None:
    assert status_of(head(*lines)) == 400


def test_http_1_0_has_no_transfer_encoding() -> None:
    # F06
    assert status_of(head(b"Transfer-Encoding: chunked", request=b"POST / HTTP/1.0")) == 400


def test_a_hundred_headers_and_no_more() -> None:
    # P0-S1, H15
    assert len(parse_head(head(*[b"a:"] * 99), LIMITS).headers) == 100
    assert status_of(head(*[b"a:"] * 100)) == 431


def test_what_is_whole_of_a_bad_head_can_be_told() -> None:
    raw = head(b"X-Request-Id: r-1", b"Bad : x", b"Accept-Language: fr", request=b"GET /x HTTP/1.1")
    assert salvage(raw, LIMITS) == (
        "GET",
        b"/x",
        [(b"host", b"a"), (b"x-request-id", b"r-1"), (b"accept-language", b"fr")],
    )
    assert salvage(b"\x16\x03\x01", LIMITS) == ("", b"", [])


# Heads out of a stream


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def feed_all(reader: HeadReader, parts: list[bytes]) -> tuple[bytes, bytes] | None:
    for number, part in enumerate(parts):
        found = reader.feed(part)
        if found is not None:
            return found[0], found[1] + b"".join(parts[number + 1 :])
    return None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_a_head_is_found_however_it_is_cut(size: int, before: bytes) -> None:
    raw = head(b"X-A: b")
    reader = HeadReader(LIMITS)
    assert feed_all(reader, pieces(before + raw + b"rest\r\n\r\n", size)) == (raw, b"rest\r\n\r\n")
    # And the next one with the same reader.
    assert feed_all(reader, pieces(before + raw, size)) == (raw, b"")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "data",
    [
        # F10, F11: at once, without the end of the head.
        b"GET / HTTP/1.1\n",
        b"\n",
        b"\r\n\r\n",
        b"\r\n" * 1000,
        b"\r\n\rX",
        b"\rX",
        b"GET /\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"GET / HTTP/1.1\r\nHost: a\rb",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rX",
        b"GET / HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nX: \x00",
    ],
)
def test_what_cannot_become_a_head_is_not_waited_for(data: bytes, size: int) -> None:
    reader = HeadReader(LIMITS)
    with pytest.raises(RequestRejected) as refused:
        parse_head((feed_all(reader, pieces(data, size)) or (b"", b""))[0], LIMITS)
    assert refused.value.status == 400


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_a_head_may_have_its_limit_to_the_byte(size: int) -> None:
    # P0-S1, H15
    limits = Limits(max_header_bytes=2000)
    frame = len(head(b"X: "))
    good, bad = (head(b"X: " + b"a" * (length - frame)) for length in (2000, 2001))
    assert feed_all(HeadReader(limits), pieces(good, size)) == (good, b"")
    reader = HeadReader(limits)
    with pytest.raises(RequestRejected) as refused:
        feed_all(reader, pieces(bad, size))
    assert refused.value.status == 431
    assert len(reader.buffer) <= max(2001, size)


@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\n", b" HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_request_line_without_room_is_414(end: bytes) -> None:
    with pytest.raises(RequestRejected) as refused:
        HeadReader(Limits(max_header_bytes=2000)).feed(b"GET /" + b"a" * 2000 + end)
    assert refused.value.status == 414


# Bodies


def chunked(limits: Limits = LIMITS) -> ChunkedBody:
    return ChunkedBody(parse_head(head(b"Transfer-Encoding: chunked"), limits), limits)


def read_body(body: Body, parts: list[bytes]) -> tuple[bytes, bytes]:
    read, rest = b"", b""
    for part in parts:
        if body.complete:
            rest += part
            continue
        more, rest = body.feed(part)
        read += more
    return read, rest


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_chunked_body_is_read_however_it_is_cut(size: int) -> None:
    data = b"3\r\nabc\r\n0000A;x=y;z\r\n0123456789\r\n1;\r\n!\r\n0;last\r\nX-T: 1\r\nX-User-Id: admin\r\n\r\nGET / HTTP"
    body = chunked()
    assert read_body(body, pieces(data, size)) == (b"abc0123456789!", b"GET / HTTP")
    assert body.complete


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_sized_body_ends_where_it_says(size: int) -> None:
    assert read_body(SizedBody(5), pieces(b"01234GET /", size)) == (b"01234", b"GET /")


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(
    "data",
    [
        # F07
        b"0x3\r\nabc\r\n",
        b"0_3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b"  3\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"3 ;x\r\nabc\r\n",
        b"3\t\r\nabc\r\n",
        b"\r\nabc\r\n",
        b";x\r\nabc\r\n",
        b"00000000000000003\r\nabc\r\n",
        b"fffffffffffffffff\r\n",
        b"3\nabc",
        b"3\r\nabc\n",
        b"3\r\nabcXX",
        b"3\r\nabc\rX",
        b"3\r\r\n",
        b"g\r\n",
        b"\xd9\xa3\r\n",
        # F08
        b"3;a\nb\r\nabc\r\n",
        b"3;a\rb\r\nabc\r\n",
        b"3;a\x00\r\nabc\r\n",
        b"3;" + b"x" * 70_000,
        b"3;" + b"x" * 5_000 + b"\r\n",
        # Trailers
        b"0\r\nX\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n X: y\r\n\r\n",
        b"0\r\nX: y\r\n z\r\n\r\n",
        b"0\r\nX: y\nZ: z\r\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\n\rX",
        b"0\r\n\n",
    ],
)
def test_chunks_that_are_none(data: bytes, size: int) -> None:
    with pytest.raises(RequestRejected) as refused:
        read_body(chunked(), pieces(data, size if len(data) < 10_000 else 1000))
    assert refused.value.status == 400


def test_a_million_chunks_may_not_be_mostly_extensions() -> None:
    # F08
    with pytest.raises(RequestRejected):
        read_body(chunked(), [b"1;0123456789abcde\r\nx\r\n" * 1_000] * 1_000)
    # Small ones without are slow, and good.
    assert len(read_body(chunked(), [b"1\r\nx\r\n" * 20_000])[0]) == 20_000


def test_trailers_count_with_the_headers() -> None:
    # P0-S1, P0-S2: one host, one transfer-encoding, 98 trailers.
    good, bad = (b"0\r\n" + b"x:y\r\n" * number + b"\r\n" for number in (98, 99))
    assert read_body(chunked(), [good]) == (b"", b"")
    with pytest.raises(RequestRejected) as refused:
        chunked().feed(bad)
    assert refused.value.status == 431


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_trailers_have_the_room_that_the_head_left(size: int, end: bytes) -> None:
    limits = Limits(max_header_bytes=2000)
    body = chunked(limits)
    with pytest.raises(RequestRejected) as refused:
        read_body(body, pieces(b"0\r\nX: " + b"a" * 2000 + end, size))
    assert refused.value.status == 431


def test_a_chunk_that_would_be_too_much_is_refused_by_its_announcement() -> None:
    body = chunked(Limits(max_body_bytes=10))
    assert body.feed(b"a\r\n0123456789\r\n") == (b"0123456789", b"")
    with pytest.raises(RequestRejected) as refused:
        body.feed(b"1\r\n")
    assert refused.value.status == 413


def test_any_cut_of_any_chunking_gives_the_same_body() -> None:
    # F15, from this side
    chance = random.Random(7)
    for _ in range(300):
        parts = [chance.randbytes(chance.choice([1, 2, 15, 16, 17, 300])) for _ in range(chance.randrange(6))]
        framed = b"".join(b"%x%b\r\n%b\r\n" % (len(part), chance.choice([b"", b";e"]), part) for part in parts)
        stream = framed + b"0\r\n\r\nNEXT"
        cuts = sorted(chance.randrange(len(stream)) for _ in range(4))
        cut = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
        assert read_body(chunked(), cut) == (b"".join(parts), b"NEXT")


# WebSocket handshakes

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = b"Sec-WebSocket-Version: 13"
UPGRADE = b"Upgrade: websocket"
CONNECTION = b"Connection: keep-alive, Upgrade"
GET = b"GET /ws HTTP/1.1"


def handshake(*lines: bytes, request: bytes = GET) -> RequestHead:
    return parse_head(head(*lines, request=request), LIMITS)


@pytest.mark.parametrize(
    "more",
    [
        [],
        [b"Content-Length: 0"],
        [b"Origin: https://a"],
        [b"Sec-WebSocket-Protocol: bearer, eyJ.e30.x", b"Sec-WebSocket-Protocol: chat"],
        [b'Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x; y="z"'],
    ],
)
def test_handshakes(more: list[bytes]) -> None:
    request = handshake(UPGRADE, CONNECTION, KEY, VERSION, *more)
    assert asks_for_websocket(request)
    check_handshake(request)


@pytest.mark.parametrize(
    "lines",
    [
        [UPGRADE, KEY, VERSION],
        [UPGRADE, b"Connection: keep-alive", KEY, VERSION],
        [UPGRADE, CONNECTION, VERSION],
        [UPGRADE, CONNECTION, KEY],
        [UPGRADE, CONNECTION, KEY, KEY, VERSION],
        [UPGRADE, CONNECTION, KEY, VERSION, VERSION],
        [UPGRADE, CONNECTION, KEY, b"Sec-WebSocket-Version: x"],
        [UPGRADE, CONNECTION, KEY, b"Sec-WebSocket-Version: 13, 8"],
        [UPGRADE, CONNECTION, b"Sec-WebSocket-Key: short", VERSION],
        [UPGRADE, CONNECTION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==", VERSION],
        [b"Upgrade: h2c, websocket", CONNECTION, KEY, VERSION],
        [UPGRADE, UPGRADE, CONNECTION, KEY, VERSION],
        # F20, P0-S19
        [UPGRADE, CONNECTION, KEY, VERSION, b"Content-Length: 35"],
        [UPGRADE, CONNECTION, KEY, VERSION, b"Transfer-Encoding: chunked"],
        [UPGRADE, CONNECTION, KEY, VERSION, b"Sec-WebSocket-Protocol: a b"],
        [UPGRADE, CONNECTION, KEY, VERSION, b"Sec-WebSocket-Protocol:"],
        [UPGRADE, CONNECTION, KEY, VERSION, b"Sec-WebSocket-Extensions: ;"],
        [UPGRADE, CONNECTION, KEY, VERSION, b"Origin: https://a", b"Origin: https://b"],
    ],
)
def test_handshakes_that_are_none(lines: list[bytes]) -> None:
    request = handshake(*lines)
    assert asks_for_websocket(request)
    with pytest.raises(RequestRejected) as refused:
        check_handshake(request)
    assert refused.value.status == 400


def test_only_get_shakes_hands() -> None:
    with pytest.raises(RequestRejected) as refused:
        check_handshake(handshake(UPGRADE, CONNECTION, KEY, VERSION, request=b"POST /ws HTTP/1.1"))
    assert refused.value.status == 400


@pytest.mark.parametrize("version", [b"777", b"8", b"0"])
def test_another_version_is_told_which_one(version: bytes) -> None:
    # F19
    with pytest.raises(RequestRejected) as refused:
        check_handshake(handshake(UPGRADE, CONNECTION, KEY, b"Sec-WebSocket-Version: " + version))
    assert refused.value.status == 426
    assert (b"sec-websocket-version", b"13") in refused.value.headers


@pytest.mark.parametrize("line", [b"Upgrade: h2c", b"Upgrade: websocket/2", b"X: websocket"])
def test_another_upgrade_is_an_ordinary_request(line: bytes) -> None:
    # F18
    assert not asks_for_websocket(handshake(line, CONNECTION))


def test_http_1_0_cannot_ask_for_an_upgrade() -> None:
    # W10, RFC 9110 section 7.8
    asked = handshake(UPGRADE, CONNECTION, KEY, VERSION, request=b"GET /ws HTTP/1.0")
    assert asks_for_websocket(asked)
    with pytest.raises(RequestRejected) as refused:
        check_handshake(asked)
    assert refused.value.status == 400
