"""Cookies that a response sets, and the `exp` of tokens that are not verified."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.tokens.credentials import (
    set_cookies,
    unverified_expiry,
)
from tests.tokens import forge


def cookies(*lines: bytes) -> dict[bytes, str]:
    return values([(b"set-cookie", line) for line in lines])


def values(headers: list[tuple[bytes, bytes]]) -> dict[bytes, str]:
    return {name: cookie.value for name, cookie in set_cookies(headers).items()}


def test_cookies_are_read_with_their_attributes_left_off() -> None:
    headers = [
        (b"Set-Cookie", b"access_token=a.b.c; Path=/; HttpOnly; SameSite=Lax"),
        (b"content-type", b"text/plain"),
        (b"cookie", b"no=1"),
        (b"set-cookie2", b"no=2"),
        (b"SET-COOKIE", b'refresh_token="q uoted" ;Secure'),
        (b"set-cookie", b" spaced = v =w \t; Max-Age=60"),
    ]
    assert values(headers) == {b"access_token": "a.b.c", b"refresh_token": "q uoted", b"spaced": "v =w"}
    assert values([]) == {}


def test_a_cookie_that_moves_to_another_path_or_domain_stays() -> None:
    old = b"a=; Max-Age=0; Path=/; Domain=old.example"
    assert cookies(b"a=v; Path=/auth; HttpOnly", b"a=; Path=/; Max-Age=0") == {b"a": "v"}
    assert cookies(b"a=; Path=/; Max-Age=0", b"a=v; Path=/auth") == {b"a": "v"}
    assert cookies(b"a=v; Path=/; Domain=new.example", old) == {b"a": "v"}
    assert cookies(b"a=v; Path=/; Domain=old.example", old) == {}
    # What is not written may be any.
    assert cookies(b"a=v", old) == cookies(b"a=v; Path=/", old) == {}
    assert cookies(b"a=v; Path=/auth", b"a=w; Path=/api") == {b"a": "w"}


@pytest.mark.parametrize(
    "line",
    [
        b"a=",
        b'a=""',
        b"a= ; Path=/",
        b"a=v; Max-Age=0",
        b"a=v;max-age = 00 ",
        b"a=v; MAX-AGE=-1; Expires=Fri, 01 Jan 2038 00:00:00 GMT",
        b"a=v; max-age=-" + b"9" * 5000,
        b"a=v; Max-Age=60; Max-Age=0",
        b"a=v; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        b"a=v; expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/",
        b"a=v; expires=Thursday, 01-Jan-70 00:00:00 GMT",
        b"a=v; expires=Thu Jan  1 00:00:00 1970",
        b"a=v; expires=Wed, 31 Dec 1969 23:59:59 GMT",
        b"a=v; Max-Age=soon; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
    ],
)
def test_a_deleted_cookie_is_none(line: bytes) -> None:
    assert cookies(line) == {}
    assert cookies(b"a=before", line) == {}
    assert cookies(line, b"a=after") == {b"a": "after"}


@pytest.mark.parametrize(
    "line",
    [
        b"a=v",
        b"a=v; Max-Age=60",
        b"a=v; Max-Age=0; Max-Age=60",
        b"a=v; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        b"a=v; Max-Age=1" + b"0" * 5000,
        b"a=v; Max-Age=",
        b"a=v; Max-Age=-",
        b"a=v; Max-Age=0x0",
        b"a=v; Max-Age",
        b"a=v; Expires=0",
        b"a=v; Expires=",
        b"a=v; Expires=Thu, 01 Jan 2970 00:00:00 GMT",
        b"a=v; Expires=\xff\xfe, 1970",
        b"a=v; Expires=" + b"," * 5000,
        b"a=v; x-max-age=0",
    ],
)
def test_a_cookie_that_lives_is_kept(line: bytes) -> None:
    assert cookies(line) == {b"a": "v"}


def test_a_line_that_is_no_cookie_is_passed_over() -> None:
    assert cookies(b"", b";", b"=v", b" =v", b"novalue", b"HttpOnly; a=b", b"\xff") == {}
    assert cookies(b'a="', b"b=\xe9", b"c=x", b"c=y") == {b"a": '"', b"b": "é", b"c": "y"}


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_cookie_raises(line: bytes, date: bytes) -> None:
    cookies(line, b"a=v; Expires=" + date)


def with_exp(exp: str) -> str:
    return forge.payload_token('{"exp": ' + exp + "}")


def test_the_expiry_of_a_token_is_read_without_a_key() -> None:
    assert unverified_expiry(forge.token(exp=1_900_000_000)) == 1_900_000_000.0
    assert unverified_expiry(forge.token(forge.OTHER_SECRET, exp=1_900_000_000.5)) == 1_900_000_000.5
    assert unverified_expiry(with_exp("253402300799")) == 253_402_300_799.0
    assert unverified_expiry(forge.hs({"typ": "refresh+jwt"}, {"exp": 5})) == 5.0


@pytest.mark.parametrize(
    "exp",
    ["null", "true", '"1900000000"', "[1]", "{}", "0", "-1", "NaN", "Infinity", "1e400", "9" * 5000, "253402300800"],
)
def test_an_expiry_that_is_no_time_is_none(exp: str) -> None:
    assert unverified_expiry(with_exp(exp)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "opaque",
        "a.b",
        "..",
        "a.b.c",
        "a.b.c.d.e",
        forge.token() + "=",
        forge.token() + "\n",
        forge.payload_token("[]"),
        forge.payload_token("{}"),
        forge.payload_token("x"),
        forge.payload_token(b"\xff"),
        forge.payload_token("[" * 4000),
        "ü.ü.ü",
        "\ud800",
    ],
)
def test_what_is_no_jwt_has_no_expiry(text: str) -> None:
    assert unverified_expiry(text) is None


def test_a_token_over_eight_kilobytes_has_no_expiry_and_takes_no_time() -> None:
    near = forge.token(exp=1_900_000_000, pad="x" * 5500)
    assert 7000 < len(near) <= 8192
    assert unverified_expiry(near) == 1_900_000_000.0
    began = time.thread_time()
    assert unverified_expiry(forge.token(exp=1_900_000_000, pad="x" * 6500)) is None
    assert unverified_expiry("a." * 5_000_000) is None
    assert time.thread_time() - began < 1
