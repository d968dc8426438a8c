"""Logout tokens (Back-Channel Logout 1.0, sections 2.4 and 2.6): good ones, and tokens that only look like one."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gatekeeper.errors import KeysUnavailable, Reason, TokenRejected
from gatekeeper.tokens import jws
from gatekeeper.tokens.claims import LOGOUT_EVENT
from gatekeeper.tokens.issuer import AccessTokenIssuer, SigningKeys
from gatekeeper.tokens.keys import FetchError, JwksKeys, StaticKeys
from gatekeeper.tokens.logout_token import LogoutToken, LogoutTokenVerifier
from tests.tokens import forge
from tests.tokens.forge import NOW

ISSUER = "https://id.example"
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "gk",
    "iat": int(NOW) - 5,
    "exp": int(NOW) + 120,
    "jti": "l1",
    "sub": "74",
    "sid": "s1",
    "events": {LOGOUT_EVENT: {}},
}
HEADER = {"alg": "HS256", "typ": "logout+jwt"}


def by(**options: Any) -> LogoutTokenVerifier:
    chosen: dict[str, Any] = {
        "keys": StaticKeys([forge.SECRET], [], ["HS256"]),
        "algorithms": ["HS256"],
        "issuer": ISSUER,
        "audience": "gk",
        "leeway_seconds": 0.0,
        "now": lambda: NOW,
    }
    return LogoutTokenVerifier(**(chosen | options))


def made(header: Any = None, **claims: Any) -> str:
    """Make a logout token. `claims` replace or add claims; `...` removes one."""
    payload = {name: value for name, value in (GOOD | claims).items() if value is not ...}
    return forge.hs(HEADER if header is None else header, payload)


async def refused(token: str, judge: LogoutTokenVerifier | None = None, reason: Reason = Reason.TOKEN_INVALID) -> None:
    with pytest.raises(TokenRejected) as caught:
        await (judge or by()).verify(token)
    assert caught.value.reason is reason
    assert len(caught.value.why) < 120


async def test_a_good_logout_token_says_what_is_over() -> None:
    assert await by().verify(made()) == LogoutToken(
        sid="s1", sub="74", jti="l1", issued_at=NOW - 5, expires_at=NOW + 120
    )
    only_sid = await by().verify(made(sub=...))
    assert (only_sid.sid, only_sid.sub) == ("s1", None)
    only_sub = await by().verify(made(sid=...))
    assert (only_sub.sid, only_sub.sub) == (None, "74")
    assert (await by().verify(made(sub=74))).sub == "74"


@pytest.mark.parametrize(
    "typ", ["logout+jwt", "LOGOUT+JWT", "application/logout+jwt", "Application/Logout+JWT", "JWT", "jwt", None]
)
async def test_the_types_of_logout_tokens_are_accepted(typ: str | None) -> None:
    header = {"alg": "HS256"} | ({} if typ is None else {"typ": typ})
    assert (await by().verify(made(header))).jti == "l1"


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "at+jwt"},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"typ": "secevent+jwt"},
        {"typ": "id+jwt"},
        {"typ": ""},
        {"typ": None},
        {"typ": ["logout+jwt"]},
        {"typ": "text/logout+jwt"},
        {"typ": "logout+jwt", "cty": "JWT"},
        {"typ": "logout+jwt", "crit": ["exp"]},
        {"typ": "logout+jwt", "alg": "HS384"},
        {"typ": "logout+jwt", "alg": "none"},
    ],
)
async def test_another_header_is_refused(header: dict[str, Any]) -> None:
    await refused(made({"alg": "HS256"} | header))


async def test_an_access_token_is_no_logout_token_and_a_logout_token_no_access_token() -> None:
    access = {"typ": "at+jwt", "alg": "HS256"}
    logout = made()
    verifier = forge.verifier()
    # Each kind first and last: the header is cached, and what it may be depends on who asks.
    for _ in range(2):
        await refused(made(access))
        # With the event of a logout a token is no access token, whatever type it says it has.
        with pytest.raises(TokenRejected, match="logout token"):
            await verifier.verify(made(access))
        assert (await by().verify(logout)).sid == "s1"
        with pytest.raises(TokenRejected) as caught:
            await verifier.verify(logout)
        assert caught.value.reason is Reason.TOKEN_INVALID


async def test_our_own_access_tokens_end_nothing() -> None:
    keys = SigningKeys([forge.SECRET.encode()], [], ["HS256"])
    tokens = AccessTokenIssuer(keys, issuer=ISSUER, audience="gk", ttl_seconds=900, user_claim="sub", now=lambda: NOW)
    issued = tokens.issue("74", sid="s1", claims={"events": {LOGOUT_EVENT: {}}}, session_expires_at=NOW + 900)
    await refused(issued.token)


def test_the_types_are_checked_by_the_shared_layer() -> None:
    token = made()
    assert jws.parse(token, ["HS256"], {"logout+jwt"}).header.type == "logout+jwt"
    for types in (jws.ACCESS_TYPES, set[str]()):
        with pytest.raises(TokenRejected, match="another kind of token"):
            jws.parse(token, ["HS256"], types)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://id.example/"},
        {"iss": "https://ID.example"},
        {"iss": [ISSUER]},
        {"iss": None},
        {"iss": ...},
        {"aud": "gk2"},
        {"aud": "GK"},
        {"aud": []},
        {"aud": ["x"]},
        {"aud": ["gk", 1]},
        {"aud": {"gk": 1}},
        {"aud": None},
        {"aud": ...},
        {"iat": ...},
        {"iat": None},
        {"iat": str(int(NOW))},
        {"iat": True},
        {"iat": int(NOW) + 1},
        {"nbf": int(NOW) + 1},
        {"exp": ..., "iat": ...},
        {"exp": ..., "iat": True},
        {"exp": ..., "iat": str(int(NOW))},
        {"exp": ..., "iat": 10**11 - 1},
        {"exp": None},
        {"exp": str(int(NOW) + 99)},
        {"jti": ...},
        {"jti": None},
        {"jti": ""},
        {"jti": 1},
        {"jti": "a\x7fb"},
        {"jti": "x" * 257},
        {"sid": None},
        {"sid": ""},
        {"sid": 1},
        {"sid": "s\n"},
        {"sub": None},
        {"sub": ""},
        {"sub": " 74"},
        {"sub": True},
        {"sub": ["74"]},
        {"sub": "a\u0000"},
        {"sub": "x" * 513},
        {"sub": ..., "sid": ...},
        {"nonce": "n"},
        {"nonce": None},
        {"nonce": ""},
        {"events": ...},
        {"events": None},
        {"events": {}},
        {"events": []},
        {"events": [LOGOUT_EVENT]},
        {"events": LOGOUT_EVENT},
        {"events": {LOGOUT_EVENT: None}},
        {"events": {LOGOUT_EVENT: True}},
        {"events": {LOGOUT_EVENT: []}},
        {"events": {LOGOUT_EVENT: "{}"}},
        {"events": {LOGOUT_EVENT + "/": {}}},
        {"events": {LOGOUT_EVENT.replace("http:", "https:"): {}}},
        {"events": {"other": {}}},
    ],
)
async def test_a_claim_that_is_not_as_it_must_be_is_refused(claims: dict[str, Any]) -> None:
    await refused(made(**claims))


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["x", "gk"]},
        {"events": {LOGOUT_EVENT: {"any": "thing"}, "other": []}},
        {"sid": "AZaz09._~+/=-"},
        {"sid": "x" * 256, "jti": "y" * 256},
        {"iat": int(NOW)},
        {"iat": NOW - 0.5, "exp": NOW + 0.5},
        {"trace_id": "x", "auth_time": "whatever"},
    ],
)
async def test_what_the_specification_allows_is_accepted(claims: dict[str, Any]) -> None:
    assert (await by().verify(made(**claims))).sub == "74"


async def test_without_a_configured_audience_it_is_not_looked_at() -> None:
    for aud in ("x", ["x"], None, ...):
        assert await by(audience=None).verify(made(aud=aud))


async def test_times_are_judged_with_leeway() -> None:
    for exp in (int(NOW), int(NOW) - 9, 0, -1):
        await refused(made(exp=exp), reason=Reason.TOKEN_EXPIRED)
    assert await by(leeway_seconds=10).verify(made(exp=int(NOW) - 9))
    await refused(made(exp=int(NOW) - 10), by(leeway_seconds=10), Reason.TOKEN_EXPIRED)
    assert await by(leeway_seconds=10).verify(made(iat=int(NOW) + 10))
    await refused(made(iat=int(NOW) + 11), by(leeway_seconds=10))


async def test_without_exp_it_counts_for_two_minutes_from_its_iat() -> None:
    for ago in (0, 60, 119):
        assert (await by().verify(made(exp=..., iat=int(NOW) - ago))).expires_at == int(NOW) - ago + 120
    for ago in (120, 121, 10**6):
        await refused(made(exp=..., iat=int(NOW) - ago), reason=Reason.TOKEN_EXPIRED)
    assert await by(leeway_seconds=10).verify(made(exp=..., iat=int(NOW) - 129))
    await refused(made(exp=..., iat=int(NOW) - 130), by(leeway_seconds=10), Reason.TOKEN_EXPIRED)
    # One from the future, and what an access token must have: none of it is forgiven.
    await refused(made(exp=..., iat=int(NOW) + 1))
    await refused(made(exp=..., events=...))


async def test_expired_is_said_only_where_exp_is_the_only_fault() -> None:
    faults: list[dict[str, Any]] = [{"nonce": "n"}, {"jti": ...}, {"events": {}}, {"iss": "x"}, {"sid": "\n"}]
    for fault in faults:
        await refused(made(exp=int(NOW) - 1, **fault))


@pytest.mark.parametrize(
    "payload",
    ["[]", "null", '"x"', "{", b"\xff", '{"jti":"a","jti":"b"}', '{"exp":NaN}', "[" * 3000],
)
async def test_a_payload_that_is_no_strict_json_object_is_refused(payload: str | bytes) -> None:
    await refused(forge.hs(HEADER, payload))


async def test_an_event_said_twice_is_refused() -> None:
    good = forge.as_bytes(GOOD).decode()
    assert await by().verify(forge.hs(HEADER, good))
    await refused(forge.hs(HEADER, good.replace('"events":', '"events": {}, "events":')))


async def test_only_the_providers_signature_counts(
    rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:
    await refused(forge.hs(HEADER, GOOD, forge.OTHER_SECRET))
    head, body, signature = made().split(".")
    for text in (f"{head}.{body}.", f"{head}.{body}", f"{head}.{body}.{signature[:-2]}", "", "x" * 9000):
        await refused(text)
    algorithms = ["RS256"]
    judge = by(keys=StaticKeys([], [forge.pem(rsa_key)], algorithms), algorithms=algorithms)
    header = {"alg": "RS256", "typ": "logout+jwt"}
    assert (await judge.verify(forge.signed_by(rsa_key, header, GOOD))).sid == "s1"
    await refused(forge.signed_by(other_rsa_key, header, GOOD), judge)
    await refused(made(), judge)
    # The published half of the provider's key is no secret of ours.
    await refused(forge.hs(HEADER, GOOD, forge.pem(rsa_key)), judge)


async def test_without_a_key_set_nothing_is_judged() -> None:
    async def down(_url: str) -> bytes:
        raise FetchError("down")

    keys = JwksKeys("https://id.example/jwks", fetch=down, algorithms=["RS256"])
    judge = by(keys=keys, algorithms=["RS256"])
    try:
        with pytest.raises(KeysUnavailable):
            await judge.verify(made({"alg": "RS256", "typ": "logout+jwt"}))
    finally:
        await keys.aclose()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"issuer": ""}, "accepted: an issuer"),
        ({"audience": ""}, "audience of logout tokens is empty"),
        ({"leeway_seconds": -1.0}, "leeway"),
        ({"leeway_seconds": 301.0}, "leeway"),
        ({"leeway_seconds": float("nan")}, "leeway"),
        ({"algorithms": []}, "no algorithm is allowed"),
        ({"algorithms": ["none"]}, "is not supported"),
        ({"algorithms": ["HS256", "RS256"]}, "never allowed together"),
    ],
)
def test_a_configuration_that_lets_everything_pass_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        by(**options)


def test_its_representation_shows_no_key() -> None:
    assert repr(by()) == f"LogoutTokenVerifier({ISSUER}; HS256; StaticKeys(1 for HS256))"
