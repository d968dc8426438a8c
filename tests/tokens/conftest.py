"""Fixtures: keys that are slow to make, once for all tests of tokens, and a source of key sets for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gatekeeper.tokens.keys import JwksKeys, http_fetcher
from tests.tokens.forge import Clock
from tests.tokens.jwks_server import ALLOWED, Source
from tests.waiting import HANG_SECONDS


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def other_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def short_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must be refused


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def p384_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="session")
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    made = Source()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    yield made
    made.gate.set()
    server.close()
    await asyncio.gather(*[task for task in made.connections if task is not None])


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
async def keys(source: Source, clock: Clock) -> AsyncIterator[JwksKeys]:
    made = JwksKeys(source.url, fetch=http_fetcher(timeout_seconds=HANG_SECONDS), algorithms=ALLOWED, clock=clock)
    yield made
    await made.aclose()
