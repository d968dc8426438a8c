"""Credentials in bodies and headers: found where they should be, and harmless where they are hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.tokens import credentials
from gatekeeper.tokens.credentials import (
    MAX_BODY_BYTES,
    Credentials,
    from_request,
)

JSON, FORM = b"application/json", b"application/x-www-form-urlencoded"
NOTHING = Credentials()
ACCESS = ("access_token", "accessToken", "token", "access")
REFRESH = ("refresh_token", "refreshToken", "refresh")


def asked(body: Any, content_type: bytes = JSON) -> Credentials:
    return from_request(body if isinstance(body, bytes) else json.dumps(body).encode(), content_type)


def answered(body: Any) -> Credentials:
    return usual_tokens(body if isinstance(body, bytes) else json.dumps(body).encode())


def usual_tokens(body: bytes) -> Credentials:
    document = credentials.parse_json(body)
    access = next((text for _, text in credentials.usual_access_tokens(document)), None)
    return Credentials(access_token=access, refresh_token=credentials.usual_refresh_token(document))


@pytest.mark.parametrize("name", ACCESS)
def test_an_access_token_is_found_under_every_name(name: str) -> None:
    for body in ({name: "a.b.c"}, {"data": {name: "a.b.c"}}, {"x": 1, "data": {name: "a.b.c"}, "y": [None]}):
        assert answered(body) == asked(body) == Credentials(access_token="a.b.c")
    assert asked(f"{name}=a.b.c".encode(), FORM) == Credentials(access_token="a.b.c")


@pytest.mark.parametrize("name", REFRESH)
def test_a_refresh_token_is_found_under_every_name(name: str) -> None:
    for body in ({name: "opaque"}, {"data": {name: "opaque"}}):
        assert answered(body) == asked(body) == Credentials(refresh_token="opaque")
    assert asked(f"{name}=opaque".encode(), FORM) == Credentials(refresh_token="opaque")


def test_the_names_count_in_order_and_data_comes_last() -> None:
    for names in (ACCESS, REFRESH):
        everywhere = {name: f"top {name}" for name in reversed(names)} | {"data": {names[0]: "below"}}
        for first in names:
            found = answered(everywhere)
            assert f"top {first}" in (found.access_token, found.refresh_token)
            assert asked(everywhere) == found
            del everywhere[first]
        found = answered(everywhere)
        assert "below" in (found.access_token, found.refresh_token)


@pytest.mark.parametrize("value", [None, 1, True, "", [], ["a"], {"a": 1}])
def test_what_is_no_token_is_passed_over(value: Any) -> None:
    assert answered({"access_token": value, "refresh_token": value}) == NOTHING
    second = {"access_token": value, "token": "good", "refresh_token": value, "refresh": "better"}
    assert answered(second) == asked(second) == Credentials(access_token="good", refresh_token="better")


def test_a_token_may_have_eight_kilobytes() -> None:
    assert answered({"access": "x" * 8192}).access_token == "x" * 8192


@pytest.mark.parametrize("data", [None, "access_token", ["access_token"], [{"access_token": "a"}], 1])
def test_data_that_is_no_object_holds_nothing(data: Any) -> None:
    assert answered({"data": data}) == NOTHING
    assert answered({"data": {"data": {"access_token": "a"}}}) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"access_token"',
        b'[{"access_token": "a"}]',
        b'{"access_token": "a"',
        b'{"access_token": "a"}{}',
        b'{"access_token": "a"} trailing',
        b"{'access_token': 'a'}",
        b'{"access_token": "a", "x": "\xff"}',
        b'\xff\xfe{"access_token": "a"}',
        '{"access_token": "a"}'.encode("utf-16"),
        b'{"access_token": "a", "x": "\xed\xa0\x80"}',
        b"<html>access_token</html>",
        b"\0" * 100,
    ],
)
def test_malformed_json_holds_nothing(body: bytes) -> None:
    assert answered(body) == NOTHING
    assert asked(body) == NOTHING


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"data":'])
def test_deep_nesting_holds_nothing_and_harms_nothing(opening: bytes) -> None:
    deep = b'{"access_token": "a", "x": ' + opening * (60_000 // len(opening)) + b"}"
    assert answered(deep) == NOTHING
    assert asked(deep) == NOTHING


def test_of_two_equal_names_the_last_counts_as_for_json_parse() -> None:
    body = b'{"access_token": "first", "access_token": "last", "data": {}, "data": {"refresh": "r"}}'
    assert answered(body) == Credentials(access_token="last", refresh_token="r")
    assert answered(b'{"token": "a", "token": null}') == NOTHING


def test_json_is_read_as_leniently_as_clients_read_it() -> None:
    for body in (
        b'\xef\xbb\xbf{"token": "a"}',
        b' \r\n\t{"token"\n:\t"a"} ',
        b'{"\\u0074oken": "\\u0061"}',
        b'{"token": "a", "n": NaN, "i": ' + b"9" * 10_000 + b"}",
        b'{"token": "a", "x": "\\ud800"}',
        b'{"token": "a", "n": 1e999}',
    ):
        assert answered(body) == asked(body) == Credentials(access_token="a")


def test_a_body_over_64_kib_is_not_read() -> None:
    start, end = b'{"token": "a", "x": "', b'"}'
    exact = start + b"x" * (MAX_BODY_BYTES - len(start) - len(end)) + end
    assert len(exact) == MAX_BODY_BYTES
    assert answered(exact) == asked(exact) == Credentials(access_token="a")
    assert answered(exact + b" ") == asked(exact + b" ") == NOTHING
    assert asked(b"token=a&x=" + b"x" * MAX_BODY_BYTES, FORM) == NOTHING


def test_an_answer_has_no_user_name() -> None:
    assert answered({"username": "ada", "token": "a"}) == Credentials(access_token="a")


@pytest.mark.parametrize(
    ("content_type", "json_too", "form"),
    [
        (b"application/json", True, False),
        (b"Application/JSON; charset=utf-8", True, False),
        (b" application/json ;x", True, False),
        (b"application/problem+json", True, False),
        (b"application/vnd.api+JSON;v=1", True, False),
        (b"application/x-www-form-urlencoded", False, True),
        (b"APPLICATION/x-www-form-urlencoded; charset=UTF-8", False, True),
        (b"", False, False),
        (b"text/json", False, False),
        (b"text/plain", False, False),
        (b"application/jsonp", False, False),
        (b"application/json-seq", False, False),
        (b"x/application/json", False, False),
        (b"application/x-www-form-urlencoded2", False, False),
        (b"multipart/form-data; boundary=application/json", False, False),
        (b"text/plain; application/json", False, False),
    ],
)
def test_the_content_type_says_what_a_body_is(content_type: bytes, *, json_too: bool, form: bool) -> None:
    assert credentials.is_json(content_type) is json_too
    assert credentials.is_form(content_type) is form
    if json_too or form:
        assert (asked({"token": "a"}, content_type).access_token == "a") is json_too
        assert (asked(b"token=a", content_type).access_token == "a") is form


@pytest.mark.parametrize("content_type", [b"", b"text/plain", b"text/json", b"application/octet-stream", b"\xff;x"])
def test_a_body_that_does_not_say_what_it_is_is_read_all_the_same(content_type: bytes) -> None:
    """A backend that parses any body finds a refresh token there, so Gatekeeper must find it too."""
    assert asked({"refresh": "a", "email": "B"}, content_type) == Credentials(refresh_token="a", user_name="b")
    assert asked(b"refresh=a&username=b", content_type) == Credentials(refresh_token="a", user_name="b")
    assert asked(b"\x00\xff\xfe{", content_type) == NOTHING


MULTIPART = b"multipart/form-data; boundary=x"


def parts(**fields: str) -> bytes:
    head = "--x\r\nContent-Disposition: form-data; name="
    return "".join(f'{head}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()).encode() + b"--x--\r\n"


def test_a_multipart_form_is_read_too() -> None:
    body = parts(refresh="a.b", username=" Zoë", token="c")
    assert asked(body, MULTIPART) == Credentials(access_token="c", refresh_token="a.b", user_name="zoë")
    assert asked(body, MULTIPART.replace(b"=x", b'="x"')).refresh_token == "a.b"
    # The first of a name counts, as in the other kind of form.
    assert asked(parts(refresh="a")[:-7] + parts(refresh="b"), MULTIPART).refresh_token == "a"


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n", b"--x--", b"\xff" * 100, b"--x\r\nContent-Disposition: y"]
)
@pytest.mark.parametrize(
    "content_type",
    [MULTIPART, b"multipart/form-data", b'multipart/form-data; boundary="', b"multipart/form-data; boundary=\xff"],
)
def test_a_broken_multipart_form_has_nothing(body: bytes, content_type: bytes) -> None:
    assert asked(body, content_type) == NOTHING


def test_a_form_is_decoded_and_its_first_values_count() -> None:
    body = b"refresh%5Ftoken=a%2Bb%2f%3D&refresh_token=second&username=A+b%20C&username=x&data=1&token=%41.b"
    assert asked(body, FORM) == Credentials(
        access_token="A.b",
        refresh_token="a+b/=",
        user_name="a b c",
    )
    assert asked(b"token=&token=second", FORM) == NOTHING
    assert asked(b"&&=&=x&token&;token=a", FORM) == NOTHING
    assert asked(b'{"token": "a"}', FORM) == NOTHING
    assert asked(b"data[token]=a&data.token=b", FORM) == NOTHING


@pytest.mark.parametrize("raw", ["username=émile".encode(), b"username=%C3%A9mile", b"username=%c3\xa9mile"])
def test_a_form_may_have_raw_octets_and_encoded_ones(raw: bytes) -> None:
    assert asked(raw, FORM).user_name == "émile"


def test_a_form_of_hostile_bytes_holds_nothing() -> None:
    for body in (b"\xff\xfe", b"token=%zz%", b"token=\xff", b"token=%ff", b"token=%00", b"%", b"&" * 65_000):
        found = asked(body, FORM)
        assert found in (NOTHING, Credentials(access_token="%zz%"))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"username": "Ada"}, "ada"),
        ({"email": " ADA@Example.org\n"}, "ada@example.org"),
        ({"username": "ada", "email": "x@y"}, "ada"),
        ({"username": "", "email": "x@y"}, "x@y"),
        ({"username": "  ", "email": "x@y"}, "x@y"),
        ({"username": 7, "email": "x@y"}, "x@y"),
        ({"username": None}, None),
        ({"username": ["ada"]}, None),
        ({"username": "  "}, None),
        ({"data": {"username": "ada"}}, None),
        ({"user": "ada"}, None),
        ({"username": "ＡＤＡ"}, "ada"),
        ({"username": "\u00a0ada\u3000"}, "ada"),
        ({"username": "e\u0301mile"}, "émile"),
        ({"username": "\ud800"}, "?"),
        ({"username": "ada" + " " * 600}, "ada"),
        ({"username": "x" * 600}, "x" * 512),
        ({"username": "x" * 511 + " y"}, "x" * 511),
        ({"username": "\ufdfa" * 3000}, ("صلى الله عليه وسلم" * 30)[:512].strip()),
    ],
)
def test_a_user_name_is_normalised(body: dict[str, Any], name: str | None) -> None:  # S22
    found = asked(body).user_name
    assert found == name
    if found is not None:
        assert found.encode("utf-8")
        assert len(found) <= 512


def test_user_names_that_look_alike_share_a_counter() -> None:  # S22
    names = ("Ada", "ADA", " ada", "ada\t", "ａｄａ", "𝐚𝐝𝐚")
    assert {asked({"username": name}).user_name for name in names} == {"ada"}


def test_credentials_show_themselves_to_nobody() -> None:
    found = asked({"token": "topsecret", "username": "ada"})
    assert repr(found) == "Credentials(access_token, user_name)"
    assert "topsecret" not in f"{found} {found!r}"


@given(st.binary(max_size=300), st.sampled_from([JSON, FORM, b"", b"\xff;"]))
def test_no_body_raises(body: bytes, content_type: bytes) -> None:
    assert isinstance(from_request(body, content_type), Credentials)
    assert isinstance(usual_tokens(body), Credentials)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)))
def test_any_value_may_stand_under_any_name(value: Any) -> None:
    body = json.dumps(dict.fromkeys((*ACCESS, *REFRESH, "data", "username", "email"), value)).encode()
    for found in (from_request(body, JSON), usual_tokens(body)):
        assert found.access_token is None or (isinstance(value, str) and found.access_token == value)
