"""Claims: accepted values, their meaning, and the order of the checks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.identifiers import mirrored, read, written
from gatekeeper.models import Claims
from tests.tokens import forge
from tests.tokens.forge import NOW


async def judge(token: str, **options: Any) -> Claims | Reason:
    try:
        return await forge.verifier(**options).verify(token)
    except TokenRejected as error:
        return error.reason


async def claims_of(token: str, **options: Any) -> Claims:
    found = await judge(token, **options)
    assert isinstance(found, Claims)
    return found


INVALID = Reason.TOKEN_INVALID
EXPIRED = Reason.TOKEN_EXPIRED


async def test_a_token_without_exp_is_refused() -> None:  # T13
    assert await judge(forge.token(exp=...)) is INVALID


@pytest.mark.parametrize(
    "exp",
    [
        "null",
        "true",
        '"99999999999"',
        '" 99 "',
        "9_999_999_999",
        '"9_999_999_999"',
        '"١٨٠٠٠٠٠٩٩٩"',
        "NaN",
        "Infinity",
        "1e400",
        "9" * 5000,
        "9" * 21,
        "[1]",
        "{}",
        "[]",
    ],
)
async def test_an_exp_that_is_no_finite_number_is_refused(exp: str) -> None:  # T13
    assert await judge(forge.payload_token('{"sub":"74","exp":' + exp + "}")) is INVALID


@pytest.mark.parametrize("exp", [int(NOW), int(NOW) - 1, NOW - 0.5, 0, -1, -(10**11)])
async def test_a_token_is_over_from_its_exp_on(exp: float) -> None:  # T13
    assert await judge(forge.token(exp=exp)) is EXPIRED


@pytest.mark.parametrize("exp", [int(NOW) + 1, NOW + 0.25, 32503680000, 10**11, 1e11])
async def test_exp_may_be_any_later_number(exp: float) -> None:  # T14: how long the session lasts is not its matter
    assert (await claims_of(forge.token(exp=exp))).expires_at == float(exp)


async def test_leeway_widens_exp() -> None:
    assert await claims_of(forge.token(exp=int(NOW) - 9), leeway_seconds=10.0)
    assert await judge(forge.token(exp=int(NOW) - 10), leeway_seconds=10.0) is EXPIRED


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_a_time_in_the_future_is_refused_beyond_the_leeway(name: str) -> None:  # T15
    token = forge.token(claims={name: int(NOW) + 60})
    assert await judge(token, leeway_seconds=0.0) is INVALID
    assert await judge(token, leeway_seconds=30.0) is INVALID
    assert await claims_of(token, leeway_seconds=120.0)


@pytest.mark.parametrize("leeway", [300.5, -1.0, float("nan"), float("inf")])
def test_a_leeway_outside_its_bounds_is_refused(leeway: float) -> None:  # T15
    with pytest.raises(ValueError, match="leeway"):
        forge.verifier(leeway_seconds=leeway)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value",
    ["-1e303", "1e303", "-1e308", "100000000001", "-100000000001", "1e11000", "100000000000.1", "9" * 20, "-1e-999e1"],
)
async def test_a_time_beyond_all_sense_is_a_bad_token(name: str, value: str) -> None:  # rule 5.1
    claims = {"sub": '"74"', "exp": f"{int(NOW) + 600}"} | {name: value}
    payload = "{" + ",".join(f'"{key}":{text}' for key, text in claims.items()) + "}"
    assert await judge(forge.payload_token(payload)) is INVALID
    with pytest.raises(TokenRejected):
        await forge.verifier().verify(forge.payload_token(payload), ignore_start=True, ignore_expiry=True)


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("value", [0, -1, -0.5, -(10**11), "-1e-400"])
async def test_a_token_may_be_from_long_ago(name: str, value: Any) -> None:
    assert await claims_of(forge.payload_token(f'{{"sub":"74","exp":{int(NOW) + 600},"{name}":{value}}}'))


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("value", [None, True, "1", [], {}])
async def test_a_time_that_is_no_number_is_refused(name: str, value: Any) -> None:
    assert await judge(forge.token(claims={name: value})) is INVALID


async def test_nbf_and_iat_may_be_missing() -> None:
    claims = await claims_of(forge.token(iat=...))
    assert claims.issued_at is None


@pytest.mark.parametrize(
    "fault",
    [
        {"sub": ""},
        {"jti": 1},
        {"sid": "\n"},
        {"token_type": "refresh"},
        {"nbf": int(NOW) + 60},
        {"iss": "x"},
        {"aud": "x"},
    ],
)
async def test_expired_is_said_only_where_exp_is_the_only_fault(fault: dict[str, Any]) -> None:
    options = {"issuer": "https://issuer", "audience": "api"}
    good: dict[str, Any] = {"iss": "https://issuer", "aud": "api", "exp": int(NOW) - 1}
    assert await judge(forge.token(claims=good), **options) is EXPIRED
    assert await judge(forge.token(claims=good | fault), **options) is INVALID
    assert await judge(forge.token(forge.OTHER_SECRET, claims=good), **options) is INVALID


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_a_token_from_the_future_counts_where_its_start_is_ignored(name: str) -> None:  # rule 5.6
    by, token = forge.verifier(), forge.token(claims={name: int(NOW) + 3600})
    assert (await by.verify(token, ignore_start=True)).user == "74"
    # It is not remembered as a good one.
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token, ignore_expiry=True)
    with pytest.raises(TokenRejected):
        await by.verify(forge.token(exp=int(NOW) - 1), ignore_start=True)


async def test_an_expired_token_counts_where_expiry_is_ignored() -> None:
    by = forge.verifier()
    token = forge.token(exp=int(NOW) - 1000)
    assert (await by.verify(token, ignore_expiry=True)).user == "74"
    for refused in (token, forge.token(exp=..., sub="1")):
        with pytest.raises(TokenRejected):
            await by.verify(refused)
    for bad in (forge.token(exp=...), forge.token(forge.OTHER_SECRET), forge.token(nbf=int(NOW) + 9)):
        with pytest.raises(TokenRejected):
            await by.verify(bad, ignore_expiry=True)


@pytest.mark.parametrize(
    "aud",
    ["ap", "api2", "API", "", "https://api/", [], ["x"], {"api": 1}, ["api", 1], [["api"]], None, 1, True, ...],
)
async def test_another_audience_is_refused(aud: Any) -> None:  # T16
    assert await judge(forge.token(aud=aud), audience="api") is INVALID
    assert await judge(forge.token(aud=aud), audience=["api", "web"]) is INVALID


@pytest.mark.parametrize("aud", ["api", ["api"], ["x", "api"]])
async def test_the_configured_audience_is_accepted(aud: Any) -> None:
    assert await claims_of(forge.token(aud=aud), audience="api")
    assert await claims_of(forge.token(aud=aud), audience=["web", "api"])


@pytest.mark.parametrize("iss", ["https://Issuer", "https://issuer/", "issuer", "", ["https://issuer"], None, 1, ...])
async def test_another_issuer_is_refused(iss: Any) -> None:  # T16
    assert await judge(forge.token(iss=iss), issuer="https://issuer") is INVALID


async def test_one_of_several_issuers_is_accepted() -> None:
    assert await claims_of(forge.token(iss="b"), issuer=["a", "b"])
    assert await judge(forge.token(iss="ab"), issuer="ab c") is INVALID


@pytest.mark.parametrize("value", ["x", ["x", 1], {}, None, 5])
async def test_what_is_not_configured_is_not_looked_at(value: Any) -> None:
    assert await claims_of(forge.token(aud=value, iss=value))


@pytest.mark.parametrize("empty", ["", [], ["a", ""]])
def test_an_empty_issuer_or_audience_is_refused(empty: Any) -> None:  # C02
    with pytest.raises(ValueError, match="issuer is empty"):
        forge.verifier(issuer=empty)
    with pytest.raises(ValueError, match="audience is empty"):
        forge.verifier(audience=empty)
    with pytest.raises(ValueError, match="user claim"):
        forge.verifier(user_claim="")


@pytest.mark.parametrize("name", ["token_type", "token_use", "type", "typ"])
async def test_a_refresh_or_id_token_is_no_access_token(name: str) -> None:  # T17
    for kind in ("refresh", "Refresh", "REFRESH", "id", "ID", " id ", "i\u200bd", ["id"]):
        assert await judge(forge.token(claims={name: kind})) is INVALID
    others: list[Any] = ["access", "Bearer", "identity", None, 1, ["x"]]
    for other in others:
        assert await claims_of(forge.token(claims={name: other}))


async def test_a_name_twice_in_the_payload_is_refused() -> None:  # T11
    for twice in (
        '"sub":"1","sub":"2"',
        '"sub":"1","exp":1,"exp":9999999999',
        '"sub":"1","sid":"a","sid":"b"',
        '"x":{"y":1,"y":1}',
    ):
        assert await judge(forge.payload_token("{" + twice + ',"exp":9999999998}')) is INVALID


@pytest.mark.parametrize(
    "payload", ["[]", '"x"', "1", "null", "{", "", b"\xff", '\ufeff{"sub":"1","exp":9999999999}', "not json"]
)
async def test_a_payload_that_is_no_object_is_refused(payload: Any) -> None:
    assert await judge(forge.payload_token(payload)) is INVALID


@pytest.mark.parametrize(
    "sub",
    [
        "",
        " a",
        "a ",
        "a\u00a0",
        "\u3000a",
        "a\r\nX-Admin: 1",
        "a\nb",
        "\n",
        "a\x00b",
        "a\tb",
        "a\x1bb",
        "a\x7fb",
        "a\x85b",
        "a\x9bb",
        "a\u2028b",
        "a\u2029b",
        "a\u202eb",
        "a\u2066b",
        "x" * 513,
        "é" * 257,
        "x" * 5000,
        None,
        True,
        False,
        1.0,
        [],
        ["a"],
        {},
        ...,
    ],
)
async def test_a_user_that_is_no_plain_name_is_refused(sub: Any) -> None:  # T18
    assert await judge(forge.token(sub=sub)) is INVALID


async def test_a_lone_surrogate_is_refused_anywhere() -> None:  # T18
    for payload in ('{"sub":"\\ud800","exp":9999999999}', '{"sub":"1","exp":9999999999,"x":["\\udc00"]}'):
        assert await judge(forge.payload_token(payload)) is INVALID
    # A pair is one character.
    assert (await claims_of(forge.payload_token('{"sub":"\\ud83d\\ude00","exp":9999999999}'))).user == "😀"


@pytest.mark.parametrize(
    ("sub", "user"),
    [
        ("admin", "admin"),
        ("ADMIN", "ADMIN"),
        ("a b", "a b"),
        ("José", "José"),
        ("Jose\u0301", "Jose\u0301"),
        ("用户", "用户"),
        ("auth0|5f7c%2F", "auth0|5f7c%2F"),
        ("x" * 512, "x" * 512),
        ("é" * 256, "é" * 256),
        ("{a}*:?", "{a}*:?"),
        (74, "74"),
        (0, "0"),
        (-5, "-5"),
        (2**64 - 1, "18446744073709551615"),
    ],
)
async def test_a_user_is_taken_as_it_stands(sub: Any, user: str) -> None:  # T18
    assert (await claims_of(forge.token(sub=sub))).user == user


async def test_the_user_claim_can_be_another() -> None:
    token = forge.token(user_id=9, sub=...)
    assert (await claims_of(token, user_claim="user_id")).user == "9"
    assert await judge(forge.token(), user_claim="user_id") is INVALID


@pytest.mark.parametrize("name", ["sid", "jti"])
@pytest.mark.parametrize(
    "value",
    ["", "a\n", "\x00", "a\x7f", "a\x85b", "\r", "x" * 257, "é" * 257, "x" * 5000, 1, 1.5, None, True, ["a"], {"a": 1}],
)
async def test_an_id_that_is_no_short_text_is_refused(name: str, value: Any) -> None:  # T19
    assert await judge(forge.token(claims={name: value})) is INVALID


@pytest.mark.parametrize("value", ["a", "AZaz09._~+/=-", "x" * 256, "6f1c-e5", "MTIz=="])
async def test_an_id_is_the_reference(value: str) -> None:
    assert (await claims_of(forge.token(jti=value))).reference == value
    claims = await claims_of(forge.token(sid=value))
    assert (claims.reference, claims.jti) == (value, "a1")


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("onrtac:8e0f", "onrtac%3A8e0f"),
        ("*", "%2A"),
        ("a:b:meta", "a%3Ab%3Ameta"),
        ("{x}", "%7Bx%7D"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("é", "%C3%A9"),
        ("auth0|user@host,1", "auth0%7Cuser%40host%2C1"),
        ("\u2028", "%E2%80%A8"),
        ("h:" + "0" * 64, "h%3A" + "0" * 64),
    ],
)
async def test_an_id_of_a_providers_own_making_is_encoded_in_the_reference(value: str, reference: str) -> None:  # T19
    claims = await claims_of(forge.token(jti=value))
    assert (claims.reference, claims.jti) == (reference, value)
    assert (await claims_of(forge.token(sid=value))).reference == reference
    assert (await claims_of(forge.token(sid=value, auth_time=7))).reference == f"{reference}:7"


_ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=256)


@given(_ids, _ids)
@settings(max_examples=300, deadline=None)
def test_two_ids_never_have_one_written_form(one: str, other: str) -> None:  # T19
    for spell in (written, mirrored):
        assert (spell(one) == spell(other)) is (one == other)
        assert read(spell(one)) == one
    assert re.fullmatch(r"[A-Za-z0-9._~+/=%-]+", written(one))
    assert re.fullmatch(r"[!-~]+", mirrored(one))


@pytest.mark.parametrize(
    ("auth_time", "reference"),
    [
        (1700000000, "s:1700000000"),
        (1700000000.0, "s:1700000000"),
        (0, "s:0"),
        (1.5, "s:1.500000"),
    ],
)
async def test_a_new_sign_in_of_a_provider_is_a_new_session(auth_time: Any, reference: str) -> None:
    assert (await claims_of(forge.token(sid="s", auth_time=auth_time))).reference == reference
    # Without `sid` there is nothing to tell apart.
    assert (await claims_of(forge.token(auth_time=auth_time))).reference == "a1"


@pytest.mark.parametrize("auth_time", ["1700000000", None, True, [], -1, 2**53, 1e300])
async def test_an_auth_time_that_is_no_time_is_refused(auth_time: Any) -> None:
    assert await judge(forge.token(sid="s", auth_time=auth_time)) is INVALID


async def test_a_token_without_ids_is_named_by_its_payload_alone() -> None:
    payload = b'{"sub":"74","exp":1800000600}'
    one = await claims_of(forge.hs({"alg": "HS256"}, payload))
    other = await claims_of(forge.hs({"alg": "HS256", "typ": "JWT", "kid": "x"}, payload))
    assert one.reference == other.reference == "h:" + forge.sha256_hex(payload)
    assert one.jti is None


@pytest.mark.parametrize(
    ("claims", "path", "roles", "is_admin"),
    [
        ({"roles": ["a", "admin"]}, "roles", ("a", "admin"), True),
        ({"roles": ["a", "Admin", "administrator"]}, "roles", ("a", "Admin", "administrator"), False),
        ({"roles": "user admin"}, "roles", ("user", "admin"), True),
        ({"roles": "  user  "}, "roles", ("user",), False),
        ({"roles": "user,admin"}, "roles", ("user", "admin"), True),
        ({"roles": " user, admin ,"}, "roles", ("user", "admin"), True),
        ({"roles": "user;admin"}, "roles", ("user;admin",), False),
        ({"scope": "read admin"}, "scope", ("read", "admin"), True),
        ({"realm_access": {"roles": ["admin"]}}, "realm_access.roles", ("admin",), True),
        ({"realm_access.roles": ["x"], "realm_access": {"roles": ["admin"]}}, "realm_access.roles", ("x",), False),
        ({"https://example.com/roles": ["admin"]}, "https://example.com/roles", ("admin",), True),
        ({"is_admin": True}, "is_admin", (), True),
        ({"is_admin": False}, "is_admin", (), False),
        ({"is_admin": 1}, "is_admin", (), False),
        ({"is_admin": "true"}, "is_admin", ("true",), False),
        ({"roles": ["admin", 1]}, "roles", (), False),
        ({"roles": {"admin": True, "ops": "x", "n": 1, "o": {}}}, "roles", ("admin", "ops", "n", "o"), True),
        ({"roles": {"admin": False, "b": None, "c": 0, "d": "", "e": [], "": True}}, "roles", (), False),
        ({"roles": {"admin": False, "user": True}}, "roles", ("user",), False),
        ({"roles": {"Admin": True}}, "roles", ("Admin",), False),
        ({"roles": [{"authority": "admin"}, {"name": "ops"}]}, "roles", ("admin", "ops"), True),
        ({"roles": [{"authority": "user", "name": "admin"}]}, "roles", ("user",), False),
        ({"roles": [{"authority": None, "name": "admin"}]}, "roles", ("admin",), True),
        ({"roles": [{"name": "admin", "enabled": False}]}, "roles", (), False),
        ({"roles": [{"name": "admin", "active": False}]}, "roles", (), False),
        ({"roles": [{"name": "admin", "active": 0}]}, "roles", (), False),
        ({"roles": [{"name": "admin", "enabled": True}, "x"]}, "roles", ("admin", "x"), True),
        ({"roles": [{"name": ["admin"]}, {"id": "admin"}, {}]}, "roles", (), False),
        ({"roles": [{"name": "admin"}, 1]}, "roles", (), False),
        ({"a.b": {"c.d": ["admin"]}}, "a.b.c.d", ("admin",), True),
        ({"a": {"b.c": ["x"]}, "a.b": {"c": ["admin"]}}, "a.b.c", ("admin",), True),
        ({"a": {"b": {"c": ["x"]}, "b.c": ["admin"]}}, "a.b.c", ("admin",), True),
        ({"https://ex.com/app": {"roles": ["admin"]}}, "https://ex.com/app.roles", ("admin",), True),
        ({"realm_access": None}, "realm_access.roles", (), False),
        ({"roles": None}, "roles", (), False),
        ({"roles": [["admin"]]}, "roles", (), False),
        ({"roles": ["", "admin"]}, "roles", ("admin",), True),
        ({"a": ["roles"]}, "a.roles", (), False),
        ({}, "a.b.c", (), False),
    ],
)
async def test_roles_are_read_from_the_configured_claim(
    claims: dict[str, Any], path: str, roles: tuple[str, ...], *, is_admin: bool
) -> None:
    found = await claims_of(forge.token(claims=claims), roles_claim=path)
    assert (found.roles, found.is_admin) == (roles, is_admin)


@pytest.mark.parametrize(
    ("claims", "is_admin"),
    [
        ({"is_superuser": True}, True),
        ({"app": {"meta": {"root": True}}}, True),
        ({"is_superuser": 1}, False),
        ({"is_superuser": "true"}, False),
        ({"is_superuser": [True]}, False),
        ({"is_superuser": False}, False),
        ({"Is_Superuser": True}, False),
    ],
)
async def test_a_boolean_claim_may_make_an_admin(claims: dict[str, Any], *, is_admin: bool) -> None:
    found = await claims_of(forge.token(claims=claims), admin_roles=["is_superuser", "app.meta.root"])
    assert found.is_admin is is_admin


@pytest.mark.parametrize("path", ["user.id", "https://ex.com/claims.user.id"])
async def test_the_user_may_be_in_a_nested_claim(path: str) -> None:
    claims = {"sub": ..., "user": {"id": 9}, "https://ex.com/claims": {"user.id": "9"}}
    assert (await claims_of(forge.token(claims=claims), user_claim=path)).user == "9"
    assert await judge(forge.token(claims={"user": {"id": {}}}), user_claim="user.id") is INVALID


@pytest.mark.parametrize("name", ["token_type", "token_use", "type", "typ", "purpose", "use", "tokenType"])
@pytest.mark.parametrize(
    "kind",
    [
        *("refresh_token", "RefreshToken", "reset", "reset_password", "Reset-Password", "verify", "verify_email"),
        *("verification", "mfa", "MFA_pending", "2fa", "2FA-challenge", "otp", "otp_required", ["mfa"]),
        *(" refresh", "refresh\n", "\u200brefresh", "re\u200dfresh\u00a0", "\ufeffOTP", [["x"], [" reset "]]),
    ],
    ids=repr,
)
async def test_a_token_for_another_purpose_is_no_access_token(name: str, kind: Any) -> None:  # T17
    assert await judge(forge.token(claims={name: kind})) is INVALID


@pytest.mark.parametrize(
    "kind", ["access", "bearer", "at", "user", "preset", "nomfa", "id_access", 7, None, ["access"]]
)
async def test_a_claim_that_tells_of_no_other_purpose_is_no_reason(kind: Any) -> None:
    for name in ("token_type", "type", "purpose", "use", "tokenType"):
        assert await claims_of(forge.token(claims={name: kind}))
    # A key may be for signing, and a purpose may be an id: only the four claims of a kind say `id`.
    assert await claims_of(forge.token(claims={"purpose": "id", "use": "id"}))


async def test_a_required_claim_has_its_value_exactly() -> None:
    needs: Any = {"required_claims": [("type", "access"), ("scope", "api")]}
    granted: list[Any] = ["api", ["api"], ["x", "api"]]
    for scope in granted:
        assert await claims_of(forge.token(type="access", scope=scope), **needs)
    types: list[Any] = ["Access", "access ", "refresh", ..., None, True, {"access": 1}]
    for type_ in types:
        assert await judge(forge.token(type=type_, scope="api"), **needs) is INVALID
    lacking: list[Any] = ["api read", "API", "", [], ["apis"], [["api"]], {"api": True}, ..., None]
    for scope in lacking:
        assert await judge(forge.token(type="access", scope=scope), **needs) is INVALID


async def test_a_required_claim_may_be_nested_and_no_text() -> None:
    needs: Any = {"required_claims": [("app.verified", "true"), ("level", "2")]}
    assert await claims_of(forge.token(app={"verified": True}, level=2), **needs)
    for verified, level in ((False, 2), (True, 3), (1, 2), (True, True)):
        assert await judge(forge.token(app={"verified": verified}, level=level), **needs) is INVALID


async def test_a_required_claim_is_judged_by_its_value_alone() -> None:
    needs: Any = {"required_claims": [("purpose", "verify")]}
    assert await claims_of(forge.token(purpose="verify"), **needs)
    assert await judge(forge.token(purpose="verify", type="refresh"), **needs) is INVALID
    assert await judge(forge.token(purpose="verification"), **needs) is INVALID


@pytest.mark.parametrize("typ", ["access", "ACCESS", "application/access", "example+jwt", "JWT", "at+jwt"])
async def test_a_configured_header_type_is_accepted_in_any_form(typ: str) -> None:
    token = forge.header_token({"alg": "HS256", "typ": typ})
    assert await claims_of(token, types=["access", "Application/Example+JWT"])
    if typ.lower().endswith(("access", "example+jwt")):
        assert await judge(token) is INVALID
    for other in ("refresh", "accesses", "id+jwt", "application/application/access", ""):
        assert await judge(forge.header_token({"alg": "HS256", "typ": other}), types=["access"]) is INVALID


async def test_any_of_several_admin_roles_makes_an_admin() -> None:
    assert (await claims_of(forge.token(roles=["ops"]), admin_roles=["admin", "ops"])).is_admin
    assert not (await claims_of(forge.token(roles=["admin"]), admin_roles=[])).is_admin


async def test_the_whole_payload_is_handed_on() -> None:
    claims = await claims_of(forge.token(tenant={"id": 5}))
    assert claims.claims == forge.USUAL | {"tenant": {"id": 5}}
    assert claims.issued_at == NOW - 60
