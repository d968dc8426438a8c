"""A wrong signature or secret costs the same work whichever byte is wrong: the same calls, in the same order, and the
comparison is one that looks at every byte (attack T27). `python -m bench.timing` measures the time."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gatekeeper.auth.oauth import IntrospectionClients
from gatekeeper.errors import TokenRejected
from gatekeeper.tokens.keys import StaticKeys
from tests.tokens import forge

ALGORITHMS = ["HS256", "RS256", "ES256"]
SECRET = "the secret of a client, of some length"


class Calls:
    """A context that records every function called in it, of Python or of C, except operators. No garbage is collected
    meanwhile: what collects calls functions too, of whatever lies around."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __enter__(self) -> list[str]:
        gc.disable()
        sys.setprofile(self._note)
        return self.made

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()
        # The way out of the context.
        del self.made[-2:]

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.made.append(frame.f_code.co_qualname)
        elif event == "c_call":
            self.made.append(argument.__qualname__)


async def calls_of(doing: Callable[[], Awaitable[object]]) -> list[str]:
    """Return the result of a coroutine that never waits."""
    with Calls() as made, suppress(TokenRejected):
        await doing()
    # A turn of its own for each.
    await asyncio.sleep(0.01)
    return made


def wrong_at(token: str, place: int) -> str:
    """Change one byte of the signature of a token."""
    signing_input, _, signature = token.rpartition(".")
    octets = bytearray(forge.unb64(signature))
    octets[place] ^= 1
    return f"{signing_input}.{forge.b64(bytes(octets))}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_wrong_signature_is_the_same_work_whichever_byte_is_wrong(
    algorithm: str, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    # T27
    if algorithm == "HS256":
        token, keys = forge.token(), StaticKeys([forge.SECRET], [], ["HS256"])
    else:
        key = rsa_key if algorithm == "RS256" else ec_key
        token, keys = forge.signed_by(key, {"alg": algorithm}), StaticKeys([], [forge.pem(key)], [algorithm])
    by = forge.verifier(keys, algorithms=[algorithm])
    size = len(forge.unb64(token.rpartition(".")[2]))
    # What is looked up once, such as the header of all these tokens, is known by then.
    await calls_of(lambda: by.verify(wrong_at(token, size // 2)))
    first, middle, last = [
        await calls_of(lambda at=at: by.verify(wrong_at(token, at)))  # type: ignore[misc]
        for at in (1, size // 2, size - 1)
    ]
    assert first == middle == last
    # The library's own, over all of it: RFC 7515 section 5.2 asks for a comparison in constant time with HMAC alone.
    compared = "compare_digest" if algorithm == "HS256" else "verify"
    assert first.count(compared) >= 1
    assert "VerificationKey.verifies" in first


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_an_hmac_is_compared_whole(algorithm: str) -> None:
    # T27
    token = forge.token(alg=algorithm)
    signing_input, _, signature = token.rpartition(".")
    (key,) = StaticKeys([forge.SECRET], [], [algorithm])._keys[algorithm]
    found = []
    for octets in (forge.unb64(signature), bytes(len(forge.unb64(signature))), b""):
        with Calls() as made:
            key.verifies(signing_input.encode(), octets)
        found.append(made)
    assert found[0] == found[1] == found[2]
    assert found[0][-1] == "compare_digest"


def test_a_client_of_introspection_is_the_same_work_known_or_not() -> None:
    # T27
    clients = IntrospectionClients({"app": SECRET})
    found = []
    for name, secret in [
        ("app", SECRET),
        ("app", "T" + SECRET[1:]),
        ("app", SECRET[:-1] + "H"),
        ("app", ""),
        ("nobody", SECRET),
        ("nobody", ""),
    ]:
        with Calls() as made:
            clients.knows(name, secret)
        found.append([call for call in made if call != "dict.get"])
    # A name that there is not is looked at with the secret of nobody, whose digest is made either way.
    assert all(made == found[0] for made in found)
    assert "compare_digest" in found[0]
