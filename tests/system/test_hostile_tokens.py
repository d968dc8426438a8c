"""Every token attack of attacks.md 1.A against a running sidecar: none is admitted, none is an error of ours, the
backend hears of none, and each is one line in the access log, which does not quote it, at debug level neither."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.servers import fetch
from tests.system.hostile import Case, hmac_cases, public_key_cases
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.tokens import forge
from tests.waiting import HANG_SECONDS

CODES = {"token_invalid", "token_expired"}
_BREAKS_A_HEADER = re.compile(r"[\x00-\x1f\x7f]")


@pytest.fixture(scope="module")
def canary() -> Iterator[Backend]:
    with Backend() as running:
        yield running


def fits_in_a_header(text: str) -> bool:
    return text == text.strip() != "" and not _BREAKS_A_HEADER.search(text)


def assert_none_passes(gate: Sidecar, backend: Backend, canary: Backend, cases: Iterable[Case]) -> int:
    """Sends each token as a header and as a cookie; how many requests that were."""
    reached, asked = len(backend.raw), len(canary.raw)
    sent: dict[str, tuple[str, str]] = {}
    for attack, text in cases:
        if not fits_in_a_header(text):
            continue
        ways = [bearer(text)]
        if len(text) < 4096 and not re.search(r'[;,"\\ ]', text):
            ways.append(("Cookie", f"access_token={text}"))
        for name, value in ways:
            request_id = f"hostile-{len(sent)}"
            value = value.encode("utf-8").decode("latin-1")
            answer = fetch(gate.url, "GET", "/protected", [("X-Request-Id", request_id), (name, value)])
            # One that no header has room for gets no further than the front door.
            assert answer.status == (401 if len(value) < 65_400 else 431), (attack, text[:200], answer)
            assert answer.get_all("cache-control") == ["no-store"]
            if answer.status == 401:
                assert "error_description" in answer.get_all("www-authenticate")[0], (attack, text[:200])
            assert len(text) < 16 or text not in answer.body.decode()
            sent[request_id] = (attack, text)
    assert len(backend.raw) == reached
    assert len(canary.raw) == asked
    lines = eventually(lambda: len(found := lines_of(gate, "hostile-")) >= len(sent) and found)
    assert sorted(line["request_id"] for line in lines) == sorted(sent)
    for line in lines:
        assert line["decision"] == "deny"
        expected = CODES if line["status"] == 401 else {"headers_too_large"}
        assert line["reason"] in expected, (line, sent[line["request_id"]])
    assert_not_quoted(gate, [text for _, text in sent.values()])
    assert gate.process.poll() is None
    return len(sent)


def lines_of(gate: Sidecar, prefix: str) -> list[dict[str, str]]:
    return [line for line in gate.access if line["request_id"].startswith(prefix)]


def assert_not_quoted(gate: Sidecar, texts: list[str]) -> None:
    """No part of a token stands in what the process wrote."""
    written = gate.stdout + gate.stderr
    for text in texts:
        for part in text.split("."):
            assert len(part) < 16 or part not in written
    assert all(len(line) <= 512 for line in gate.stdout.splitlines())


def test_no_hostile_token_passes_a_secret(store: Store, backend: Backend, canary: Backend) -> None:
    # T01, T04, T06 to T13, T15, T17 to T19, T21, T25
    with sidecar(backend.url, redis_url=store.url, log_level="debug") as gate:
        assert assert_none_passes(gate, backend, canary, hmac_cases(canary.url)) > 500
        # And a good one passes still, whose token is in no log either.
        good = token(someone())
        assert fetch(gate.url, "GET", "/", [bearer(good)]).status == 200
        eventually(lambda: gate.access[-1]["status"] == 200)
        assert_not_quoted(gate, [good])


def test_no_hostile_token_passes_public_keys(
    store: Store, backend: Backend, canary: Backend, tmp_path: Path
) -> None:  # T02, T03, T05, T09, T10
    rsa_key, ec_key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "keys.pem"
    pem.write_text(forge.pem(rsa_key) + forge.pem(ec_key))
    with sidecar(backend.url, redis_url=store.url, log_level="debug", jwt_public_key=str(pem)) as gate:
        cases = list(public_key_cases(rsa_key, ec_key, canary.url))
        assert assert_none_passes(gate, backend, canary, cases) > 500
        now = int(time.time())
        for key, alg in ((rsa_key, "RS256"), (ec_key, "ES256")):
            good = forge.signed_by(key, {"alg": alg}, {"sub": someone(), "exp": now + 60})
            assert fetch(gate.url, "GET", "/", [bearer(good)]).status == 200


def test_a_token_that_breaks_a_header_line_is_no_header(gate: Sidecar, backend: Backend) -> None:  # T12, T18
    reached = len(backend.raw)
    parts = urlsplit(gate.url)
    for end in (b"\x00", b"\x0b", b"\r", b"\x7f"):
        with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=HANG_SECONDS) as connection:
            head = (
                f"GET /protected HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token(someone())}"
            )
            connection.sendall(head.encode() + end + b"\r\n\r\n")
            answer = connection.makefile("rb").readline()
        assert answer.split(b" ")[1] in (b"400", b"401"), (end, answer)
    assert len(backend.raw) == reached
