"""Histories of clients under faults: of one sidecar and of two, whose store is killed and frozen, and which are killed
themselves. `HISTORIES_SECONDS` is the length of each, for a night (CONTRIBUTING.md)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.histories.checker import Operation, violations
from tests.histories.clients import Clients, ReturningClients
from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import Backend, Sidecar, Store, external_store, hello, sidecar, someone, token
from tests.tokens import forge
from tests.waiting import START_SECONDS, eventually

pytestmark = pytest.mark.slow

_SECONDS = float(os.environ.get("HISTORIES_SECONDS", "20"))
_LIMIT = 3
_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")
_CHECK = "/internal/check"


async def _answer(connection: RawConnection, request: RawRequest) -> None:
    """The user whose name it was asked about, or two bytes."""
    if request.target not in {_CHECK.encode(), b"/auth/login"}:
        await hello(connection, request)
        return
    asked = json.loads(request.body)
    user = asked["username"]
    answer = {"id": user}
    if request.target == b"/auth/login":
        answer = {"access_token": token(user, sid=f"{user}-{asked['browser']}", auth_time=1_700_000_000)}
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    await connection.write(head + body)


class Bed:
    """A store and its sidecars, each of which may be killed and comes back."""

    def __init__(self, stack: ExitStack, sidecars: int, **options: str) -> None:
        self._options = options
        self.store: Store = stack.enter_context(external_store(*_OPTIONS))
        self._backend = stack.enter_context(Backend(_answer))
        self._stacks = [stack.enter_context(ExitStack()) for _ in range(sidecars)]
        self.gates: list[Sidecar] = [self._start(each) for each in self._stacks]

    def _start(self, stack: ExitStack) -> Sidecar:
        options = {
            "redis_url": self.store.url,
            "device_limit": str(_LIMIT),
            "store_timeout": "1s",
            "rate_limit": "off",
            "login_rate_limit": "off",
        } | self._options
        return stack.enter_context(sidecar(self._backend.url, **options))

    def urls(self) -> list[str]:
        return [gate.url for gate in self.gates]

    def fault(self, chance: random.Random) -> str:
        """One fault, from its beginning to its end."""
        what = chance.choice(["store killed", "store frozen", "sidecar killed"])
        if what == "store killed":
            self.store.kill()
            time.sleep(chance.uniform(0, 0.5))
            self.store.start()
        elif what == "store frozen":
            self.store.signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0.1, 1.5))
            self.store.signal(signal.SIGCONT)
        else:
            number = chance.randrange(len(self.gates))
            self.gates[number].kill()
            self._stacks[number].close()
            self.gates[number] = self._start(self._stacks[number])
        return what


def _wait_for_service(clients: Clients) -> None:
    """Returns when a request was admitted that began after the call."""
    since, seen = time.monotonic(), len(clients.history)

    def admitted() -> bool:
        return any(
            each.kind == "request" and each.result == "done" and each.began > since for each in clients.history[seen:]
        )

    eventually(admitted, seconds=START_SECONDS)


def _lived(bed: Bed, clients: Clients, seed: int) -> tuple[list[Operation], str]:
    """What the clients saw while faults happened, and a line about it."""
    chance, faults = random.Random(seed), Counter[str]()
    clients.start()
    over = time.monotonic() + _SECONDS
    try:
        _wait_for_service(clients)
        while time.monotonic() < over or not faults:
            time.sleep(chance.uniform(0.5, 3))
            faults[bed.fault(chance)] += 1
            _wait_for_service(clients)
    finally:
        clients.stop()
    history = clients.names()
    seen = Counter((each.kind, each.result) for each in history)
    # It has looked at something.
    assert seen["login", "done"]
    assert seen["request", "done"]
    return history, f"seed {seed}: {len(history)} operations, {dict(faults)}, {dict(seen)}"


@pytest.mark.timeout(_SECONDS * 4 + 600)
@pytest.mark.parametrize("sidecars", [1, 2])
def test_what_clients_see_under_faults_breaks_no_invariant(sidecars: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with ExitStack() as stack:
        bed = Bed(stack, sidecars, tokens="issue", signing_key=forge.SECRET, login_check_url=_CHECK)
        clients = Clients(bed.urls, [someone() for _ in range(4)], threads=8, seed=seed)
        history, line = _lived(bed, clients, seed)
    print(line)
    assert violations(history, limit=_LIMIT) == [], line


@pytest.mark.timeout(_SECONDS * 4 + 600)
def test_users_who_come_back_under_one_sid_bring_no_old_token_back() -> None:
    seed = random.SystemRandom().randrange(10**6)
    with ExitStack() as stack:
        bed = Bed(stack, 2)
        clients = ReturningClients(bed.urls, [someone() for _ in range(4)], threads=8, seed=seed)
        history, line = _lived(bed, clients, seed)
    print(line)
    # One session has several tokens here, so they say nothing about the limit.
    assert violations(history, limit=10**6) == [], line
