"""`gatekeeper audit`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    World,
    command,
    environment,
    eventually,
    external_store,
    someone,
    token,
)
from tests.system.sidecar import sidecar as started
from tests.waiting import START_SECONDS

FIELDS = [
    *("ts", "event", "actor", "actor_id", "user_id", "session_id", "reason", "client_ip", "request_id"),
    *("user_name", "id", "late"),
]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="module")
def gate(store: Store) -> Iterator[World]:
    with Backend() as backend, started(backend.url, redis_url=store.url) as gate:
        yield Gate(gate, backend, store)


class Gate(World):
    def __init__(self, sidecar: Sidecar, backend: Backend, store: Store) -> None:
        super().__init__(sidecar.url, lambda: backend.reached, store)
        self.sidecar = sidecar


def events(store: Store, *arguments: str) -> list[dict[str, Any]]:
    done = command("audit", *arguments, redis_url=store.url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logged(sidecar: Sidecar, user: str) -> list[tuple[str, str]]:
    lines = [line for line in sidecar.log if line["event"] == "audit" and line["user_id"] == user]
    return [(line["action"], line["id"]) for line in lines]


def until_on_record(store: Store, user: str, number: int) -> None:
    """Words about a session follow the answer by a moment."""

    def are_there() -> Any:
        entries: Any = store.client.xrange("gk:audit")
        return [fields["user_id"] for _, fields in entries].count(user) == number

    eventually(are_there)


def test_who_did_what_from_where_and_in_which_request(gate: Gate, store: Store) -> None:
    user = someone()
    mine = token(user)
    gate.fetch("/", mine, headers=[("X-Request-Id", "r-open")])
    (session,) = gate.session_ids(mine)
    gate.fetch(f"/sessions/{session}", mine, method="DELETE", headers=[("X-Request-Id", "r-close")])
    until_on_record(store, user, 2)
    opened, ended = events(store, "export", "--user", user)
    assert list(opened) == list(ended) == FIELDS
    common = {"actor": "user", "actor_id": user, "user_id": user, "session_id": session, "client_ip": "127.0.0.1"}
    assert opened.items() >= (common | {"event": "session_opened", "reason": "token", "request_id": "r-open"}).items()
    expected = common | {"event": "session_ended", "reason": "revoked_by_user", "request_id": "r-close"}
    assert ended.items() >= expected.items()
    # In the log as well.
    recorded = [(each["event"], each["id"]) for each in (opened, ended)]
    eventually(lambda: logged(gate.sidecar, user) == recorded)


def test_what_an_administrator_does_is_on_record_with_their_name(gate: Gate, store: Store) -> None:  # A-24, D-01
    user, chief = someone(), someone()
    gate.fetch("/", token(user))
    gate.fetch(f"/sessions/user/{user}", token(chief, roles=["admin"]), method="DELETE")
    until_on_record(store, user, 3)
    _, action, ended = events(store, "export", "--user", user)
    assert (action["event"], action["reason"]) == ("admin_action", "DELETE /sessions/user/{user_id}")
    assert (ended["event"], ended["reason"]) == ("session_ended", "revoked_by_admin")
    for each in (action, ended):
        assert (each["actor"], each["actor_id"], each["user_id"]) == ("admin", chief, user)


def test_the_fourth_device_evicts_and_that_is_on_record(gate: Gate, store: Store) -> None:  # A-24, C-12, D-07
    user = someone()
    for _ in range(4):
        gate.fetch("/", token(user))
    until_on_record(store, user, 5)
    ended = [each for each in events(store, "export", "--user", user) if each["event"] == "session_ended"]
    assert [(each["reason"], each["actor"]) for each in ended] == [("evicted", "system")]


def test_export_takes_a_window_of_time(gate: Gate, store: Store) -> None:
    user = someone()
    gate.fetch("/", token(user))
    until_on_record(store, user, 1)
    (event,) = events(store, "export", "--user", user)
    asked = ("export", "--user", user)
    assert events(store, *asked, "--since", "1h") == [event]
    assert events(store, *asked, "--since", event["ts"][:19]) == [event]
    assert events(store, *asked, "--until", event["ts"]) == []
    assert events(store, *asked, "--since", "2999-01-01T00:00:00Z") == []


def test_tail_shows_the_newest_and_follows(gate: Gate, store: Store) -> None:
    users = [someone() for _ in range(3)]
    for user in users[:2]:
        gate.fetch("/", token(user))
        until_on_record(store, user, 1)
    assert [each["user_id"] for each in events(store, "tail", "-n", "2")] == users[:2]
    assert events(store, "tail", "-n", "0") == []
    following = subprocess.Popen(
        [Path(sys.executable).parent / "gatekeeper", "audit", "tail", "--follow", "--number", "1"],
        env=environment(redis_url=store.url),
        stdout=subprocess.PIPE,
        text=True,
    )
    with following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["user_id"] == users[1]
        gate.fetch("/", token(users[2]))
        assert json.loads(following.stdout.readline())["user_id"] == users[2]
        following.send_signal(signal.SIGINT)
        assert following.wait(START_SECONDS) == 0


def test_the_lines_in_the_log_are_no_matter_of_its_level() -> None:
    code = (
        "import logging; from gatekeeper.telemetry.logs import configure; configure(as_json=True, level='critical');"
        "logging.getLogger('gatekeeper.audit').info('audit'); logging.getLogger('gatekeeper').error('other')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["audit"]


@pytest.mark.parametrize("arguments", [["export", "--since", "yesterday"], ["tail", "-n", "x"], ["nonsense"], []])
def test_wrong_use_is_exit_code_2(store: Store, arguments: list[str]) -> None:
    done = command("audit", *arguments, redis_url=store.url)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["tail", "export"])
def test_without_a_store_it_is_exit_code_1(name: str, tmp_path: Path) -> None:
    done = command("audit", name, redis_url=f"unix://{tmp_path}/nowhere.sock")
    assert (done.returncode, done.stdout) == (1, "")
    assert "session store failed" in done.stderr
