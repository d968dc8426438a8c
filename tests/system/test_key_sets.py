"""A key set behind a URL, through the whole sidecar (attacks.md 1.L)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import sidecar_app
from tests.system.sidecar import Backend, Store, World, eventually, sidecar, someone
from tests.tokens import forge
from tests.waiting import HANG_SECONDS

UNAVAILABLE = error_body("keys_unavailable")


class KeySource:
    """An issuer that publishes what a test wants, when it wants."""

    def __init__(self) -> None:
        self.asked = 0
        self.status = 200
        self.headers: list[tuple[str, str]] = []
        self.body = b'{"keys":[]}'
        self.open = threading.Event()
        self.open.set()
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.asked += 1
                source.open.wait(HANG_SECONDS)
                self.send_response(source.status)
                for name, value in [*source.headers, ("Content-Length", str(len(source.body)))]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(source.body)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"

    def publish(self, *keys: Any) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    @contextmanager
    def serving(self) -> Iterator[KeySource]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.open.set()
            self._server.shutdown()
            thread.join(HANG_SECONDS)
            self._server.server_close()


@pytest.fixture
def source() -> Iterator[KeySource]:
    with KeySource().serving() as running:
        yield running


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def signed(key: Any, kid: str | None = "a", alg: str = "RS256") -> str:
    now = int(time.time())
    header = {"alg": alg} | ({} if kid is None else {"kid": kid})
    return forge.signed_by(key, header, {"sub": someone(), "jti": someone(), "iat": now, "exp": now + 600})


def test_a_key_set_verifies_tokens_and_is_asked_once(
    store: Store, backend: Backend, source: KeySource, key: rsa.RSAPrivateKey
) -> None:  # D03, J03
    source.publish(forge.jwk(key, kid="a", use="sig"))
    with sidecar(backend.url, redis_url=store.url, jwks_url=source.url) as gate:
        world = World(gate.url, lambda: backend.reached, store)
        eventually(lambda: gate.ready().status == 200)
        world.passed("/", signed(key))
        assert gate.metric("gatekeeper_jwks_keys") == 1
        # A flood of unknown ids is at most one more fetch.
        asked = source.asked
        for number in range(30):
            assert_own_response(world.refused("/", signed(key, f"x{number}")), 401, error_body("token_invalid"))
        assert source.asked <= asked + 1
        # The issuer goes away: what is known stays.
        source.status, source.body = 500, b""
        world.passed("/", signed(key))
        assert gate.ready().status == 200


def test_a_sidecar_starts_before_the_issuer(
    store: Store, backend: Backend, source: KeySource, key: rsa.RSAPrivateKey
) -> None:  # J05, J6, K11
    source.status = 503
    with sidecar(backend.url, redis_url=store.url, jwks_url=source.url) as gate:
        world = World(gate.url, lambda: backend.reached, store)
        answer = world.refused("/", signed(key))
        assert_own_response(answer, 503, UNAVAILABLE)
        assert gate.ready().status == 503
        # What asks for no signature is refused as ever.
        assert world.refused("/").status == world.refused("/", "x").status == 401
        source.status = 200
        source.publish(forge.jwk(key, kid="a"))
        bearing = signed(key)
        eventually(lambda: world.fetch("/", bearing).status == 200)
        eventually(lambda: gate.ready().status == 200)


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b"{}", b'{"keys":null}', b'{"keys":[1]}', b'{"keys":[' + b"[" * 50_000]
)
def test_nonsense_is_no_key_set(store: Store, backend: Backend, source: KeySource, body: bytes) -> None:  # J02
    source.body = body
    with sidecar_app(store, backend, jwks_url=source.url) as world:
        answer = world.refused("/", signed(rsa.generate_private_key(65537, 2048)))
        assert_own_response(answer, 503, UNAVAILABLE)


def test_a_redirect_of_the_issuer_is_not_followed(
    store: Store, backend: Backend, source: KeySource, key: rsa.RSAPrivateKey
) -> None:  # J01
    with KeySource().serving() as canary:
        canary.publish(forge.jwk(key, kid="a"))
        source.status, source.headers = 302, [("Location", canary.url)]
        with sidecar_app(store, backend, jwks_url=source.url) as world:
            assert_own_response(world.refused("/", signed(key)), 503, UNAVAILABLE)
        assert source.asked > 0
        assert canary.asked == 0


def test_only_usable_public_keys_of_a_set_count(
    store: Store, backend: Backend, source: KeySource, key: rsa.RSAPrivateKey
) -> None:  # J02, J04, T29
    secret = {"kty": "oct", "kid": "s", "k": forge.b64(forge.SECRET.encode()), "alg": "HS256"}
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must be refused
    meant_for_else = rsa.generate_private_key(65537, 2048)
    source.publish(
        secret,
        {"kty": "RSA"},
        forge.jwk(weak, kid="w"),
        forge.jwk(meant_for_else, kid="e", use="enc"),
        forge.jwk(key, kid="a"),
    )
    with sidecar_app(store, backend, jwks_url=source.url) as world:
        world.passed("/", signed(key))
        symmetric = forge.hs({"alg": "HS256", "kid": "s"}, {"sub": "1", "exp": int(time.time()) + 60})
        for bad in (symmetric, signed(weak, "w"), signed(meant_for_else, "e"), signed(key, "w"), signed(key, "A")):
            assert_own_response(world.refused("/", bad), 401, error_body("token_invalid"))


def test_a_slow_issuer_holds_up_nobody_whose_key_is_known(
    store: Store, backend: Backend, source: KeySource, key: rsa.RSAPrivateKey
) -> None:  # J05
    source.publish(forge.jwk(key, kid="a"))
    with sidecar_app(store, backend, jwks_url=source.url) as world:
        world.passed("/", signed(key))
        source.open.clear()
        before = source.asked
        for _ in range(5):
            world.passed("/", signed(key))
        assert source.asked == before
