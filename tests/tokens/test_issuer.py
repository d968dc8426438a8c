"""Issued access tokens follow rule 5.7, and refresh tokens reveal nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.tokens.issuer import (
    RESERVED_CLAIMS,
    AccessTokenIssuer,
    SigningKeys,
    digest,
    new_refresh_token,
    new_sid,
    seal,
    unseal,
)
from gatekeeper.tokens.keys import StaticKeys
from tests.tokens import forge
from tests.tokens.forge import NOW, Clock
from tests.tokens.test_signing_keys import private_pem

SECRET = forge.SECRET.encode()
FAR = NOW + 86_400


def issuer(**options: Any) -> AccessTokenIssuer:
    chosen: dict[str, Any] = {
        "issuer": None,
        "audience": None,
        "ttl_seconds": 900.0,
        "user_claim": "sub",
        "now": lambda: NOW + 0.75,
    }
    keys = options.pop("keys", None) or SigningKeys([SECRET], [], ["HS256"])
    return AccessTokenIssuer(keys, **(chosen | options))


def payload_of(token: str) -> dict[str, Any]:
    segment = token.split(".")[1]
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return payload


def test_a_token_says_exactly_what_it_must() -> None:
    made = issuer().issue("74", sid="s1", claims={"roles": ["admin"], "team": None}, session_expires_at=FAR)
    assert payload_of(made.token) == {
        "iss": "gatekeeper",
        "aud": "gatekeeper",
        "sub": "74",
        "sid": "s1",
        "jti": made.jti,
        "iat": int(NOW),
        "exp": int(NOW) + 900,
        "roles": ["admin"],
        "team": None,
    }
    assert made.expires_at == int(NOW) + 900
    # Whole seconds are integers on the wire, and the user stays a string.
    assert re.search(r'"exp":\d+[,}]', forge.as_bytes(payload_of(made.token)).decode().replace(" ", ""))
    assert isinstance(payload_of(made.token)["sub"], str)


def test_issuer_and_audience_are_the_settings() -> None:
    made = issuer(issuer="https://id", audience="api").issue("7", sid="s", claims={}, session_expires_at=FAR)
    payload = payload_of(made.token)
    assert (payload["iss"], payload["aud"]) == ("https://id", "api")


async def test_our_own_verifier_accepts_what_is_issued(ec_key: ec.EllipticCurvePrivateKey) -> None:
    for keys, algorithms in (
        (SigningKeys([SECRET], [], ["HS512"]), ["HS512"]),
        (SigningKeys([], [private_pem(ec_key)], ["ES256"]), ["ES256"]),
    ):
        by = forge.verifier(
            StaticKeys(keys.hmac_secrets, keys.public_keys_pem, algorithms),
            algorithms=algorithms,
            issuer="gatekeeper",
            audience="gatekeeper",
            user_claim="uid",
            leeway_seconds=0.0,
        )
        tokens = issuer(keys=keys, user_claim="uid")
        made = tokens.issue("Zoë", sid="a-session", claims={"roles": ["admin"]}, session_expires_at=FAR)
        claims = await by.verify(made.token)
        assert (claims.user, claims.reference, claims.jti, claims.is_admin) == ("Zoë", "a-session", made.jti, True)
        assert claims.claims["sub"] == claims.claims["uid"] == "Zoë"


@pytest.mark.parametrize(
    ("ttl", "left", "life"),
    [(900.0, 86_400.0, 900), (900.0, 100.9, 100), (900.0, 0.5, 0), (900.0, -5.0, -5), (90.9, 86_400.0, 90)],
)
def test_a_token_never_outlives_its_session(ttl: float, left: float, life: int) -> None:
    tokens = issuer(ttl_seconds=ttl, now=lambda: NOW)
    made = tokens.issue("7", sid="s", claims={}, session_expires_at=NOW + left)
    assert made.expires_at == payload_of(made.token)["exp"] == int(NOW) + life
    assert made.expires_at <= NOW + left
    # What a client is told stays the setting (rule 5.7).
    assert tokens.ttl_seconds == int(ttl)
    assert isinstance(tokens.ttl_seconds, int)


def test_the_clock_is_asked_for_each_token() -> None:
    clock = Clock()
    tokens = issuer(now=clock)
    before = tokens.issue("7", sid="s", claims={}, session_expires_at=FAR).expires_at
    clock.at += 61
    assert tokens.issue("7", sid="s", claims={}, session_expires_at=FAR).expires_at == before + 61


@pytest.mark.parametrize("name", sorted(RESERVED_CLAIMS))
async def test_a_claim_of_the_backend_cannot_replace_ours(name: str) -> None:
    claims = {name: "evil", "roles": ["user"]}
    made = issuer().issue("7", sid="s", claims=claims, session_expires_at=FAR)
    payload = payload_of(made.token)
    assert set(payload) == {"iss", "aud", "sub", "sid", "jti", "iat", "exp", "roles"}
    assert "evil" not in payload.values()
    assert (await forge.verifier().verify(made.token)).reference == "s"


def test_the_user_claim_is_the_users_whatever_the_backend_says() -> None:
    made = issuer(user_claim="email").issue("a@b", sid="s", claims={"email": "evil@b"}, session_expires_at=FAR)
    assert payload_of(made.token)["email"] == payload_of(made.token)["sub"] == "a@b"


@pytest.mark.parametrize("name", [*sorted(RESERVED_CLAIMS - {"sub"}), ""])
def test_a_user_claim_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the user claim is"):
        issuer(user_claim=name)


@pytest.mark.parametrize("ttl", [0.0, 0.5, -1.0, float("inf"), float("nan")])
def test_a_life_under_a_second_is_refused(ttl: float) -> None:
    with pytest.raises(ValueError, match="accepted: 1 s or longer"):
        issuer(ttl_seconds=ttl)


def test_every_token_has_an_id_of_its_own_that_nobody_guesses() -> None:
    tokens = issuer()
    ids = {tokens.issue("7", sid="s", claims={}, session_expires_at=FAR).jti for _ in range(500)}
    assert len(ids) == 500
    # 128 bits are 22 characters of base64url.
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,}", jti) for jti in ids)


def test_a_token_can_be_issued_again_under_its_id() -> None:
    tokens = issuer()
    first = tokens.issue("7", sid="s", claims={}, session_expires_at=FAR)
    again = tokens.issue("7", sid="s", claims={}, session_expires_at=NOW + 60, jti=first.jti)
    assert again.jti == first.jti == payload_of(again.token)["jti"]
    assert again.expires_at < first.expires_at


def test_the_name_of_a_session_is_random_and_fit_for_a_token() -> None:
    made = {new_sid() for _ in range(500)}
    assert len(made) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", sid) for sid in made)


def test_a_token_that_nobody_would_accept_is_not_issued() -> None:
    tokens = issuer()
    assert len(tokens.issue("7", sid="s", claims={"x": "y" * 5500}, session_expires_at=FAR).token) <= 8192
    with pytest.raises(ValueError, match="longer than 8 KiB"):
        tokens.issue("7", sid="s", claims={"x": "y" * 6500}, session_expires_at=FAR)


async def test_an_issued_token_is_over_at_its_exp() -> None:
    clock = Clock()
    made = issuer(now=clock).issue("7", sid="s", claims={}, session_expires_at=FAR)
    by = forge.verifier(now=clock)
    clock.at = made.expires_at - 0.01
    assert await by.verify(made.token)
    clock.at = made.expires_at
    with pytest.raises(TokenRejected) as caught:
        await by.verify(made.token)
    assert caught.value.reason is Reason.TOKEN_EXPIRED


def test_its_representation_shows_no_key() -> None:
    assert repr(issuer()) == "AccessTokenIssuer(900 s; SigningKeys(HS256, 1 to verify))"


def test_refresh_tokens_are_random_and_of_256_bits() -> None:
    made = {new_refresh_token() for _ in range(500)}
    assert len(made) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in made)


def test_a_refresh_token_is_stored_as_its_sha_256() -> None:
    sha256 = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert digest("abc") == base64.urlsafe_b64encode(sha256).decode().rstrip("=")
    assert len({digest(text) for text in ("a", "A", "a ", "", "\ud800", "\ud801", "é")}) == 7


@given(st.binary(max_size=2000))
def test_what_is_sealed_is_read_by_its_token_alone(content: bytes) -> None:
    token, other = new_refresh_token(), new_refresh_token()
    sealed = seal(token, content)
    assert unseal(token, sealed) == content
    for presented in (other, token[:-1], token + "A", token.swapcase(), "", "\ud800"):
        assert unseal(presented, sealed) is None


def test_sealed_content_cannot_be_changed() -> None:
    token = new_refresh_token()
    sealed = seal(token, b'{"access_token": "a", "refresh_token": "b"}')
    for at in range(len(sealed)):
        assert unseal(token, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
        assert unseal(token, sealed[:at]) is None
    assert unseal(token, sealed + b"\0") is None
    assert unseal(token, b"") is None


def test_the_same_content_is_never_sealed_alike() -> None:
    token = new_refresh_token()
    assert len({seal(token, b"pair") for _ in range(100)}) == 100
    assert len({seal(token, b"pair")[:12] for _ in range(100)}) == 100


def test_what_is_stored_of_a_token_opens_nothing() -> None:
    token = new_refresh_token()
    sealed = seal(token, b"the pair")
    assert b"the pair" not in sealed
    assert token.encode() not in sealed
    stored = digest(token)
    octets = hashlib.sha256(token.encode()).digest()
    for key in (
        octets,
        hashlib.sha256(octets).digest(),
        hashlib.sha256(stored.encode()).digest(),
        stored[:32].encode(),
    ):
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(sealed[:12], sealed[12:], None)
    for presented in (stored, octets.hex(), octets.decode("latin-1"), stored + "="):
        assert unseal(presented, sealed) is None
