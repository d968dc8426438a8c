"""SIGHUP: secrets from files and key sets are read again; several workers are replaced one by one."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone
from tests.system.test_key_sets import KeySource, signed
from tests.system.test_workers import workers_of
from tests.tokens import forge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 120.0
NOT_RELOADED = "configuration not reloaded, the old one stays in use"
ONE, OTHER = forge.SECRET, forge.OTHER_SECRET


def passes(gate: Sidecar, secret: str) -> bool:
    """Tell if a token that is signed with `secret` is admitted."""
    now = int(time.time())
    signed = forge.token(secret, claims={"sub": someone(), "iat": now, "exp": now + 600})
    return fetch(gate.url, "GET", "/", [bearer(signed)]).status == 200


def hang_up(gate: Sidecar) -> None:
    gate.process.send_signal(signal.SIGHUP)


def said(gate: Sidecar, text: str) -> int:
    return sum(text in line["event"] for line in gate.log)


def test_a_single_process_reads_its_secrets_again(backend: Backend, store: Store, tmp_path: Path) -> None:  # C05, C06
    secret, file = tmp_path / "secret", tmp_path / "gatekeeper.env"
    secret.write_text(ONE)
    file.write_text("GATEKEEPER_PUBLIC_PATHS=/open\n")
    with sidecar(
        backend.url, "--env-file", str(file), redis_url=store.url, jwt_secret_file=str(secret), shutdown_delay="1s"
    ) as gate:
        assert passes(gate, ONE)
        secret.write_text(OTHER)
        hang_up(gate)
        eventually(lambda: passes(gate, OTHER), seconds=SECONDS)
        assert not passes(gate, ONE)
        # What is wrong changes nothing, and is said; so is what cannot change while it runs.
        for wrong in ("short", "GATEKEEPER_JWT_SECRET"):
            before = said(gate, NOT_RELOADED)
            secret.write_text(wrong)
            hang_up(gate)
            eventually(lambda: said(gate, NOT_RELOADED) > before, seconds=SECONDS)  # noqa: B023 - within the turn
            assert passes(gate, OTHER)
        secret.write_text(ONE)
        file.write_text("GATEKEEPER_PUBLIC_PATHS=/open,/wide\n")
        hang_up(gate)
        eventually(lambda: passes(gate, ONE), seconds=SECONDS)
        eventually(lambda: said(gate, "configuration needs a restart: GATEKEEPER_PUBLIC_PATHS") == 1)
        assert fetch(gate.url, "GET", "/wide").status == 401
        assert OTHER not in gate.stderr


def test_workers_are_replaced_one_by_one_and_nothing_is_lost(backend: Backend, store: Store, tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "gatekeeper.env"
    secret.write_text(ONE)
    file.write_text("GATEKEEPER_PUBLIC_PATHS=/open\n")
    with sidecar(
        backend.url, "--env-file", str(file), redis_url=store.url, jwt_secret_file=str(secret), workers="2"
    ) as gate:
        before = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        over = threading.Event()
        failed: list[object] = []

        def ask() -> None:
            while not over.is_set():
                try:
                    if not passes(gate, ONE):
                        failed.append("refused")
                except OSError as error:
                    failed.append(error)

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            secret.write_text(f"{ONE}\n{OTHER}")
            file.write_text("GATEKEEPER_PUBLIC_PATHS=/wide\n")
            # The whole group, as a terminal does it: the workers leave it to their parent.
            os.killpg(gate.process.pid, signal.SIGHUP)
            eventually(lambda: said(gate, "configuration reloaded"), seconds=SECONDS)
            after = eventually(lambda: not set(found := workers_of(gate)) & set(before) and found, seconds=SECONDS)
            assert len(after) == 2
            assert all(passes(gate, OTHER) for _ in range(6))
            assert fetch(gate.url, "GET", "/wide").status == 200
            assert fetch(gate.url, "GET", "/open").status == 401
            secret.write_text("short")
            hang_up(gate)
            eventually(lambda: said(gate, NOT_RELOADED), seconds=SECONDS)
            assert workers_of(gate) == after
        finally:
            over.set()
            for client in clients:
                client.join()
        assert failed == []
        # One that dies is started again with the settings in use, whatever the files say meanwhile.
        os.kill(after[0], signal.SIGKILL)
        eventually(lambda: len(found := workers_of(gate)) == 2 and after[0] not in found, seconds=SECONDS)
        os.kill(after[1], signal.SIGSTOP)
        try:
            eventually(lambda: passes(gate, OTHER), seconds=SECONDS)
        finally:
            os.kill(after[1], signal.SIGCONT)


def test_a_single_process_takes_another_password_of_the_store(backend: Backend, tmp_path: Path) -> None:
    store, file = Store(tmp_path), tmp_path / "url"

    def change(password: str) -> None:
        file.write_text(f"unix://gate:{password}@{store.path}\n")

    def as_admin(*words: str) -> None:
        admin: Any = store.client
        admin.execute_command(*words)

    store.start()
    try:
        as_admin("ACL", "SETUSER", "gate", "on", ">one", "~*", "&*", "+@all")
        change("one")
        with sidecar(backend.url, redis_url_file=str(file)) as gate:
            assert passes(gate, ONE)
            # The new one is added first, and the old one taken away once it is in use.
            as_admin("ACL", "SETUSER", "gate", ">two")
            change("two")
            hang_up(gate)
            eventually(lambda: said(gate, "configuration reloaded") == 1, seconds=SECONDS)
            as_admin("ACL", "SETUSER", "gate", "<one")
            as_admin("CLIENT", "KILL", "USER", "gate")
            eventually(lambda: passes(gate, ONE), seconds=SECONDS)
            # The other way round, it is 503 until the process is informed.
            as_admin("ACL", "SETUSER", "gate", "resetpass", ">three")
            as_admin("CLIENT", "KILL", "USER", "gate")
            eventually(lambda: gate.ready().status == 503, seconds=SECONDS)
            assert not passes(gate, ONE)
            change("three")
            hang_up(gate)
            eventually(lambda: passes(gate, ONE), seconds=SECONDS)
            eventually(lambda: gate.ready().status == 200, seconds=SECONDS)
            # Open streams hear of ends again.
            eventually(lambda: said(gate, "revocation channel restored") >= 1, seconds=SECONDS)
            # Another place is another store, with other sessions.
            file.write_text("redis://gate:three@127.0.0.1:1\n")
            hang_up(gate)
            eventually(lambda: said(gate, "configuration needs a restart: GATEKEEPER_REDIS_URL") == 1, seconds=SECONDS)
            assert passes(gate, ONE)
            assert not {"one", "two", "three"} & set(re.findall(r"[a-z]+", gate.stderr.replace("session store", "")))
    finally:
        store.close()


def test_a_single_process_reads_a_key_set_again(backend: Backend, store: Store) -> None:
    """At once, and not after the pause that requests with unknown keys must keep."""
    old, new = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    with KeySource().serving() as source:
        source.publish(forge.jwk(old, kid="old"))
        with sidecar(backend.url, redis_url=store.url, jwks_url=source.url) as gate:

            def admits(key: Any, kid: str) -> bool:
                return fetch(gate.url, "GET", "/", [bearer(signed(key, kid))]).status == 200

            eventually(lambda: admits(old, "old"), seconds=SECONDS)
            source.publish(forge.jwk(new, kid="new"))
            hang_up(gate)
            eventually(lambda: admits(new, "new"), seconds=SECONDS)
            assert not admits(old, "old")
            # A set that cannot be fetched changes nothing.
            source.status = 500
            hang_up(gate)
            eventually(lambda: said(gate, "configuration reloaded") == 2, seconds=SECONDS)
            assert admits(new, "new")


def test_a_single_process_signs_with_another_key(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "signing"
    first = "the first of two that are long enough to sign with"
    file.write_text(first)
    login = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"id":"signer"}'
    with (
        Backend(login) as backend,
        sidecar(
            backend.url,
            redis_url=store.url,
            tokens="issue",
            login_check_url=f"{backend.url}/check",
            signing_key_file=str(file),
        ) as gate,
    ):

        def access() -> str:
            body = b'{"username":"signs","password":"secret"}'
            headers = [("Content-Type", "application/json")]
            answer = fetch(gate.url, "POST", "/auth/login", headers, body)
            assert answer.status == 200, answer
            return str(json.loads(answer.body)["access_token"])

        def signed_by(secret: str, token: str) -> bool:
            with suppress(jwt.InvalidSignatureError):
                jwt.decode(token, secret, algorithms=["HS256"], options={"verify_aud": False})
                return True
            return False

        before = access()
        assert signed_by(first, before)
        file.write_text(f"{OTHER}\n{first}")
        hang_up(gate)
        eventually(lambda: signed_by(OTHER, access()), seconds=SECONDS)
        assert fetch(gate.url, "GET", "/", [bearer(before)]).status == 200
        file.write_text(OTHER)
        hang_up(gate)
        eventually(lambda: fetch(gate.url, "GET", "/", [bearer(before)]).status == 401, seconds=SECONDS)
