"""Content encodings: accepted forms, lenient reading, and bounds against decompression bombs."""

from __future__ import annotations

import functools
import gzip
import io
import time
import tracemalloc
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.tokens.credentials import MAX_BODY_BYTES, inflate

TEXT = b'{"access_token": "a.b.c"}' * 20
GIB = 1 << 30


def deflated(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(data) + packer.flush()


def gzipped(data: bytes) -> bytes:
    return deflated(data, 31)


def raw(data: bytes) -> bytes:
    return deflated(data, -15)


FORMS = {
    b"gzip": gzipped(TEXT),
    b"x-gzip": gzipped(TEXT),
    b"deflate": zlib.compress(TEXT),
    b"br": brotli.compress(TEXT),
}


@pytest.mark.parametrize("encoding", [b"", b"identity", b"Identity", b" identity\t"])
def test_content_without_an_encoding_stays_as_it_is(encoding: bytes) -> None:
    assert inflate(TEXT, encoding) == TEXT
    assert inflate(b"", encoding) == b""
    assert inflate(b"x" * MAX_BODY_BYTES, encoding) == b"x" * MAX_BODY_BYTES
    assert inflate(b"x" * (MAX_BODY_BYTES + 1), encoding) is None


@pytest.mark.parametrize("encoding", FORMS)
def test_each_encoding_is_inflated(encoding: bytes) -> None:
    assert inflate(FORMS[encoding], encoding) == TEXT
    assert inflate(FORMS[encoding], b" " + encoding.upper() + b" ") == TEXT


def test_deflate_is_read_with_and_without_its_frame() -> None:
    for data in (TEXT, b"", b"\x78\x9c", *(bytes([n]) * n for n in range(256))):
        assert inflate(zlib.compress(data), b"deflate") == data
        assert inflate(zlib.compress(data, 0), b"deflate") == data
        assert inflate(deflated(data, 9), b"deflate") == data
        assert inflate(raw(data), b"deflate") == data


@pytest.mark.parametrize(
    "encoding",
    [b"zstd", b"compress", b"gzip, br", b"gzip,gzip", b"identity, gzip", b"gzip,", b",", b"*", b"gzip;q=1", b"\xff"],
)
def test_other_and_several_encodings_are_not_read(encoding: bytes) -> None:
    assert inflate(gzipped(TEXT), encoding) is None


@pytest.mark.parametrize("encoding", FORMS)
def test_garbage_is_not_read(encoding: bytes) -> None:
    for content in (b"", b"\0", TEXT, b"\xff" * 100, b"\x1f\x8b", b"\x1f\x8b\x08" + b"\xff" * 50, b"\x78\x9c"):
        assert inflate(content, encoding) is None


@pytest.mark.parametrize("encoding", FORMS)
def test_content_cut_anywhere_before_its_end_is_not_read(encoding: bytes) -> None:
    whole = FORMS[encoding]
    trailer = {b"gzip": 8, b"x-gzip": 8, b"deflate": 4}.get(encoding, 0)
    for length in range(len(whole) - trailer):
        assert inflate(whole[:length], encoding) is None, length


def test_a_trailer_that_is_wrong_or_missing_is_forgiven_as_browsers_do() -> None:
    for content in (FORMS[b"gzip"][:-8], FORMS[b"gzip"][:-3], FORMS[b"gzip"][:-8] + b"\xff" * 8):
        assert inflate(content, b"gzip") == TEXT
    for content in (FORMS[b"deflate"][:-4], FORMS[b"deflate"][:-4] + b"\xff" * 4):
        assert inflate(content, b"deflate") == TEXT


def test_what_follows_the_first_member_is_not_looked_at() -> None:
    for garbage in (b"\0" * 512, b"garbage", gzipped(b"second")):
        assert inflate(FORMS[b"gzip"] + garbage, b"gzip") == TEXT
        assert inflate(FORMS[b"deflate"] + garbage, b"deflate") == TEXT


def test_every_field_of_a_gzip_header_is_skipped() -> None:
    body = raw(TEXT)
    base = b"\x1f\x8b\x08"
    rest = b"\0\0\0\0\0\xff"
    extra, name, comment, check = b"\x05\x00extra", b"file.json\0", b"comment\0", b"\xab\xcd"
    assert inflate(base + b"\x1f" + rest + extra + name + comment + check + body, b"gzip") == TEXT
    assert inflate(base + b"\x08" + rest + name + body, b"gzip") == TEXT
    assert inflate(base + b"\x02" + rest + check + body, b"gzip") == TEXT
    assert inflate(base + b"\x04" + rest + b"\xff\xff" + body, b"gzip") is None
    assert inflate(base + b"\x08" + rest + b"no end", b"gzip") is None
    with io.BytesIO() as file:
        with gzip.GzipFile("a name.json", "wb", fileobj=file) as packer:
            packer.write(TEXT)
        assert inflate(file.getvalue(), b"gzip") == TEXT


@pytest.mark.parametrize("encoding", FORMS)
def test_64_kib_come_out_and_not_a_byte_more(encoding: bytes) -> None:
    pack = {b"deflate": zlib.compress, b"br": brotli.compress}.get(encoding, gzipped)
    assert inflate(pack(b"x" * MAX_BODY_BYTES), encoding) == b"x" * MAX_BODY_BYTES
    assert inflate(pack(b"x" * (MAX_BODY_BYTES + 1)), encoding) is None
    noise = bytes((n * n * 31 + n // 7) & 255 for n in range(MAX_BODY_BYTES))
    packed = pack(noise)
    assert inflate(packed, encoding) == (noise if len(packed) <= MAX_BODY_BYTES else None)


@functools.cache
def bomb(encoding: bytes) -> bytes:
    """Make content that decompresses to 1 GiB of zeros."""
    zeros = b"\0" * (1 << 20)
    if encoding == b"br":
        squeezer = brotli.Compressor(quality=5)
        parts: list[bytes] = [squeezer.process(zeros) for _ in range(GIB >> 20)]
        return b"".join([*parts, squeezer.finish()])
    packer = zlib.compressobj(1, zlib.DEFLATED, {b"gzip": 31, b"deflate": 15}[encoding])
    return b"".join([packer.compress(zeros) for _ in range(GIB >> 20)]) + packer.flush()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br"])
def test_a_bomb_does_not_go_off(encoding: bytes) -> None:
    whole = bomb(encoding)
    # In 64 KiB go some 60 MB of deflate, and the whole GiB of brotli; cut, it is a bomb that is broken too.
    for content in (whole, whole[:MAX_BODY_BYTES]):
        tracemalloc.start()
        began = time.thread_time()
        try:
            assert inflate(content, encoding) is None
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert time.thread_time() - began < 0.5
        # The output, and copies of the input.
        assert peak < 8 * MAX_BODY_BYTES


@pytest.mark.slow
def test_the_bombs_are_real() -> None:
    assert len(bomb(b"br")) < 4096
    inflater = zlib.decompressobj(31)
    assert len(inflater.decompress(bomb(b"gzip")[:MAX_BODY_BYTES], 4_000_000)) == 4_000_000


@given(st.binary(max_size=400), st.sampled_from([b"gzip", b"deflate", b"br", b"x-gzip", b"identity"]))
def test_no_content_raises(content: bytes, encoding: bytes) -> None:
    for head in (b"", b"\x1f\x8b\x08\x1f", b"\x78\x9c"):
        made = inflate(head + content, encoding)
        assert made is None or len(made) <= MAX_BODY_BYTES
