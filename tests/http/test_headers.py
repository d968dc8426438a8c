"""Identity headers: a client cannot forge one, and a token's content cannot end one."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.http.grammar import is_token
from gatekeeper.http.headers import IdentityHeaders, fold, get, get_all, request_id

IDENTITY = IdentityHeaders(
    [
        ("X-User-Id", "sub", None),
        ("X-Session-Id", "session", None),
        ("X-User-Roles", "roles", None),
        ("X-Tenant", "claim", "tenant"),
    ]
)


def cgi_name(name: bytes) -> bytes:
    """Return a header's name as CGI, WSGI and PHP read it."""
    return b"HTTP_" + bytes(byte if chr(byte).isalnum() else ord("_") for byte in name.upper())


def value_of(name: bytes, *, user: str = "74", roles: tuple[str, ...] = (), **claims: Any) -> bytes | None:
    return get(IDENTITY.values(user, 5, roles, claims), name)


# H01, H02, H03
@pytest.mark.parametrize(
    "name",
    [
        b"x-user-id",
        b"X-User-Id",
        b"X-USER-ID",
        b"x_user_id",
        b"x-user_id",
        b"X.User.Id",
        b"x~user!id",
        b"x-user-id\x85",
        b"x-user-id ",
        b"x-user-\xc4\xb1d",
        b"x-session-id",
        b"x_user_roles",
        b"x-tenant",
        b"x-gatekeeper-degraded",
        b"X_Gatekeeper_Degraded",
        b"x-gatekeeper-anything",
        b"x-original-url",
        b"X_Rewrite.Url",
    ],
)
def test_no_spelling_of_our_own_headers_comes_from_a_client(name: bytes) -> None:
    others = [(b"accept", b"*/*"), (b"cookie", b"a=1")]

    assert IDENTITY.without_spoofed([others[0], (name, b"admin"), others[1]]) == others


# H02
@given(st.binary(min_size=1, max_size=14))
def test_nothing_that_cgi_reads_as_ours_is_left(name: bytes) -> None:
    ours = {cgi_name(own) for own in IDENTITY.names}

    assert not any(cgi_name(kept) in ours for kept, _ in IDENTITY.without_spoofed([(name, b"1")]))


def test_other_headers_stay_with_their_order_and_repetition() -> None:
    headers = [
        (b"x-user", b"1"),
        (b"accept", b"a"),
        (b"x-user-ids", b"2"),
        (b"accept", b"b"),
        (b"x-http-method-override", b"DELETE"),
        (b"user-agent", b"\xe9"),
        (b"x_custom", b""),
    ]

    assert IDENTITY.without_spoofed(headers) == headers


# P0-S2
def test_the_list_that_is_cleaned_is_a_new_one() -> None:
    headers = [(b"accept", b"a")]
    cleaned = IDENTITY.without_spoofed(headers)
    headers.append((b"x-user-id", b"admin"))

    assert cleaned == [(b"accept", b"a")]


def test_the_backend_is_told_user_session_roles_and_claims() -> None:
    assert IDENTITY.values("74", 9007199254740991, ["admin", "staff"], {"tenant": "acme"}) == [
        (b"x-user-id", b"74"),
        (b"x-session-id", b"9007199254740991"),
        (b"x-user-roles", b"admin,staff"),
        (b"x-tenant", b"acme"),
    ]


def test_without_roles_the_header_is_empty_and_without_a_claim_there_is_none() -> None:
    assert value_of(b"x-user-roles") == b""
    assert value_of(b"x-tenant") is None
    assert value_of(b"x-tenant", tenant=None) is None


# H16
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("anna", b"anna"),
        ("a b", b"a b"),
        ("100%", b"100%25"),
        ("%41", b"%2541"),
        ("josé", b"jos%C3%A9"),
        ("用户", b"%E7%94%A8%E6%88%B7"),
        ("a\r\nX-Admin: 1", b"a%0D%0AX-Admin: 1"),
        ("nul\x00del\x7f", b"nul%00del%7F"),
        (" both ends  ", b"%20both ends%20%20"),
        ("a,b", b"a,b"),
        ("\ud800", b"%ED%A0%80"),
    ],
)
def test_values_are_percent_encoded_outside_printable_ascii(user: str, expected: bytes) -> None:
    assert value_of(b"x-user-id", user=user) == expected


# H16
@given(st.text())
def test_decoding_gives_the_user_back_and_the_value_is_a_legal_one(user: str) -> None:
    value = value_of(b"x-user-id", user=user)

    assert value is not None
    assert unquote_to_bytes(value) == user.encode()
    assert all(0x20 <= byte < 0x7F for byte in value)
    assert value == value.strip()


@given(st.lists(st.text(min_size=1)))
def test_roles_can_be_told_apart_again(roles: list[str]) -> None:
    value = value_of(b"x-user-roles", roles=tuple(roles))

    assert value is not None
    assert [unquote_to_bytes(part).decode() for part in value.split(b",") if part] == roles


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (True, b"true"),
        (7, b"7"),
        (1.5, b"1.5"),
        ("", b""),
        (["a", "b,c", 3, True], b"a,b%2Cc,3,true"),
        ([], b""),
        ({"a": [1, "é"]}, b'{"a":[1,"%C3%A9"]}'),
        ([["a"], {}], b'[["a"],{}]'),
    ],
)
def test_claims_of_every_json_type_have_a_text(claim: Any, expected: bytes) -> None:
    assert value_of(b"x-tenant", tenant=claim) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda leaf: st.lists(leaf) | st.dictionaries(st.text(), leaf),
    )
)
def test_no_claim_breaks_the_header(claim: Any) -> None:
    value = value_of(b"x-tenant", tenant=claim)

    assert (value is None) == (claim is None)
    assert all(0x20 <= byte < 0x7F for byte in value or b"")


def test_a_lone_surrogate_in_a_claim_is_no_failure() -> None:
    assert value_of(b"x-tenant", tenant=json.loads('{"a": "\\udfff"}')) == b'{"a":"%ED%BF%BF"}'


@pytest.mark.parametrize(
    "table",
    [
        [("X User", "sub", None)],
        [("", "sub", None)],
        [("X-Ü", "sub", None)],
        [("X-User", "name", None)],
        [("X-User", "claim", None)],
        [("X-User", "sub", "tenant")],
        [("X-User", "sub", None), ("x_user", "roles", None)],
    ],
)
def test_a_wrong_table_is_refused(table: list[tuple[str, str, str | None]]) -> None:
    with pytest.raises(ValueError):
        IdentityHeaders(table)


def test_folding_lowers_and_unifies() -> None:
    assert fold(b"X_User.Id") == b"x-user-id"
    assert fold(b"X-User-Id\x85") == b"x-user-id"
    assert is_token(b"X_User.Id")
    assert not is_token(b"X-User-Id\x85")
    assert not is_token(b"")


def test_names_are_found_with_their_repetition() -> None:
    headers = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]

    assert get_all(headers, b"a") == [b"1", b"3"]
    assert get(headers, b"a") == b"1"
    assert get(headers, b"c") is None


@pytest.mark.parametrize("given_id", [b"a", b"9f/x:y=z+-._A", b"x" * 128])
def test_a_harmless_request_id_is_kept(given_id: bytes) -> None:
    assert request_id([(b"x-request-id", given_id)]) == given_id.decode()


@pytest.mark.parametrize(
    "values", [[], [b""], [b"x" * 129], [b"a b"], [b"a\n"], [b"\xe9"], [b"<script>"], [b"a", b"a"], [b"a,b"]]
)
def test_any_other_request_id_is_replaced_by_a_new_uuid(values: list[bytes]) -> None:
    headers = [(b"x-request-id", value) for value in values]

    made = request_id(headers)
    assert uuid.UUID(made).version == 4
    assert uuid.UUID(made).variant == uuid.RFC_4122
    assert str(uuid.UUID(made)) == made != request_id(headers)
    assert request_id(headers) != request_id(headers)
