"""SIGHUP: secrets from files and key sets are read again; several workers are replaced one by one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone
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
        assert said(gate, "configuration needs a restart: GATEKEEPER_PUBLIC_PATHS") == 1
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
