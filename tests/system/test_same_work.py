"""Who tries refresh tokens or user names learns nothing by what Gatekeeper does about them: the same is asked of the
store and of the backend, and the same is answered (attack T27). Nothing is timed here; `python -m bench.timing` does
that, and `test_issuing.py` looks at the moment of an answer to a failed login."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.servers import ClientResponse, RawConnection, RawRequest, fetch
from tests.system.sidecar import Backend, Sidecar, Store, eventually, external_store, sidecar, someone
from tests.tokens import forge
from tests.tokens.login_server import http

CHECK = "/internal/check"
PASSWORD = "the right one"
# What is one's own: digests of a name, of an address and of a token, ids and instants.
_OWN: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f-]{36}|[\w-]{43}|\d{4}-\d\d-\d\dT[\d:.]+Z")
_ABOUT: Final = re.compile(r"gk:(refresh|login|audit|sid)|gk:\{")


async def answering(connection: RawConnection, request: RawRequest) -> None:
    """A backend that tells nothing by its answers or their time."""
    members = json.loads(request.body)
    right = members["password"] == PASSWORD
    await connection.write(http({"id": members["username"]}) if right else http({"detail": "no"}, "401 Unauthorized"))
    connection.close()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """With one Gatekeeper alone."""
    with external_store() as running:
        yield running


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(answering) as running:
        yield running


@pytest.fixture(params=["issue", "observe"])
def gate(request: pytest.FixtureRequest, store: Store, backend: Backend) -> Iterator[Sidecar]:
    settings = {"tokens": "issue", "login_check_url": CHECK} if request.param == "issue" else {}
    with sidecar(backend.url, redis_url=store.url, **settings) as running:
        yield running


def post(gate: Sidecar, target: str, **members: str) -> ClientResponse:
    return fetch(gate.url, "POST", target, [("Content-Type", "application/json")], json.dumps(members).encode())


def told(answer: ClientResponse) -> tuple[Any, ...]:
    """An answer without its instant and its id."""
    own = {"date", "x-request-id"}
    return answer.status, answer.body, [(name, value) for name, value in answer.headers if name.lower() not in own]


def asked_of(store: Store, do: Callable[[], ClientResponse]) -> tuple[ClientResponse, list[str]]:
    """What `do` has answered, and the commands that the store ran meanwhile, those of its scripts included."""
    commands: list[str] = []
    with store.client.monitor() as monitor:  # type: ignore[no-untyped-call]
        answer = do()
        store.client.echo("that was all")
        while not (command := monitor.next_command()["command"]).startswith("ECHO"):
            if _ABOUT.search(command) and ":outbox" not in command:
                commands.append(command)
    return answer, commands


def wrong(token: str) -> dict[str, str]:
    """A refresh token with another first, and another last byte, and one that has nothing of it."""
    octets = forge.unb64(token)
    return {
        "first": forge.b64(bytes([octets[0] ^ 1]) + octets[1:]),
        "last": forge.b64(octets[:-1] + bytes([octets[-1] ^ 1])),
        "all": forge.b64(bytes(octet ^ 255 for octet in octets)),
    }


@pytest.mark.parametrize("gate", ["issue"], indirect=True)
def test_a_wrong_refresh_token_is_looked_up_by_its_hash_whichever_byte_is_wrong(gate: Sidecar, store: Store) -> None:
    # T27
    pair = json.loads(post(gate, "/login", username=someone(), password=PASSWORD).body)
    eventually(lambda: store.client.zcard("gk:outboxes") == 0)
    found = {}
    for which, token in wrong(pair["refresh_token"]).items():
        answer, commands = asked_of(store, lambda token=token: post(gate, "/refresh", refresh_token=token))  # type: ignore[misc]
        digest = forge.b64(hashlib.sha256(token.encode()).digest())
        assert commands == [f"GET gk:refresh:{digest}"], which
        assert answer.status == 401
        found[which] = told(answer)
    assert found["first"] == found["last"] == found["all"]


def test_a_wrong_password_is_the_same_work_for_a_user_who_is_known_and_for_one_who_is_not(
    gate: Sidecar, store: Store, backend: Backend
) -> None:
    # T27: who hashes the password, of an unknown user too, is the backend; it is asked either way.
    known, unknown = someone(), someone()
    assert post(gate, "/login", username=known, password=PASSWORD).status == 200
    eventually(lambda: store.client.zcard("gk:outboxes") == 0)
    found = []
    for name in (known, unknown):
        before = len(backend.raw)
        answer, commands = asked_of(store, lambda name=name: post(gate, "/login", username=name, password="wrong"))  # type: ignore[misc]
        (asked,) = backend.raw[before:]
        assert json.loads(asked.body) == {"username": name, "password": "wrong"}
        assert not any(name in command for command in commands)
        assert answer.status == 401
        head = _OWN.sub("…", asked.head.decode())
        found.append((told(answer), [_OWN.sub("…", command) for command in commands], head))
    assert found[0] == found[1]
    # It was counted, and it is on record.
    assert any(" fail " in command for command in found[0][1])
    assert any(command.startswith("XADD gk:audit") for command in found[0][1])
