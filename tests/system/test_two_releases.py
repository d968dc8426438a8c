"""Two builds of Gatekeeper on one store, one of them run from a copy of the package that differs. K12 of the faults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from pathlib import Path

import pytest
import redis

import gatekeeper
from gatekeeper.sessions.store import CHECK
from gatekeeper.store.epoch import SCHEMA
from tests.contracts.responses import RETRY_SOON
from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    World,
    command,
    eventually,
    external_store,
    masked,
    sidecar,
    someone,
    token,
)

_SCRIPT = "gatekeeper/sessions/scripts/audit.lua"
_REMARK = "-- another build\n"
_EPOCH = "gatekeeper/store/epoch.py"


def events_with(gate: Sidecar, text: str) -> list[str]:
    return [line["event"] for line in gate.log if text in line["event"]]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(autouse=True)
def empty(store: Store) -> None:
    store.client.flushall()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory from which `gatekeeper` is imported as well."""
    package = Path(gatekeeper.__file__).parent
    shutil.copytree(package, tmp_path / "gatekeeper", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@contextmanager
def run_from(copy: Path) -> Iterator[None]:
    """Processes that are started now run from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(copy), prepend=os.pathsep)
        yield


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new))


@contextmanager
def started_from(copy: Path, backend: Backend, store: Store, **settings: str) -> Iterator[Sidecar]:
    with run_from(copy), sidecar(backend.url, redis_url=store.url, **settings) as running:
        yield running


def dump(store: Store) -> dict[bytes, bytes | None]:
    """All that is there, byte for byte."""
    with redis.Redis(unix_socket_path=str(store.path)) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def test_builds_of_one_format_enforce_each_others_ends(store: Store, backend: Backend, copy: Path) -> None:
    # K12: scripts go by their hash, so each brings its own
    file = copy / _SCRIPT
    unchanged = file.read_text()
    file.write_text(_REMARK + unchanged)
    with (
        sidecar(backend.url, redis_url=store.url) as here,
        started_from(copy, backend, store) as there,
    ):
        one, two = (World(gate.url, lambda: backend.reached, store) for gate in (here, there))
        for number in range(20):
            user = someone()
            mine, theirs, kept = (token(user) for _ in range(3))
            one.passed("/", mine)
            two.passed("/", theirs)
            one.passed("/", kept)
            two.passed("/", kept)
            # Each reads what the other wrote.
            assert sorted(one.session_ids(kept)) == sorted(two.session_ids(kept))
            assert len(one.session_ids(kept)) == 3
            first, second = (one, two) if number % 2 else (two, one)
            assert first.fetch("/sessions/logout", mine, method="DELETE").status == 200
            assert second.refused("/", mine).status == 401
            assert second.fetch("/api/users/me/sessions?exclude_current=true", kept, method="DELETE").status == 200
            assert first.refused("/", theirs).status == 401
            one.passed("/", kept)
            two.passed("/", kept)
            assert one.session_ids(kept) == two.session_ids(kept)
            assert len(one.session_ids(kept)) == 1
            assert store.live(user) == 1
            assert masked(one.fetch("/api/sessions", kept).body) == masked(two.fetch("/api/sessions", kept).body)
        theirs_source = CHECK.source.replace(unchanged, _REMARK + unchanged)
        other = sha1(theirs_source.encode(), usedforsecurity=False).hexdigest()
        assert store.client.script_exists(CHECK.sha, other) == [True, True]
        for gate in (here, there):
            for kind in ("refused", "protocol"):
                assert gate.metric("gatekeeper_store_errors_total", kind=kind) == 0
            assert not [line for line in gate.log if line["level"] in ("warning", "error")]


def test_a_store_in_another_format_is_refused_and_nothing_in_it_touched(
    store: Store, backend: Backend, copy: Path
) -> None:
    # K12
    change(copy / _EPOCH, f"SCHEMA: Final = {SCHEMA}", "SCHEMA: Final = 77")
    live, ended = token(someone()), token(someone())
    with sidecar(backend.url, redis_url=store.url) as gate:
        world = World(gate.url, lambda: backend.reached)
        world.passed("/", live)
        world.passed("/", ended)
        assert world.fetch("/sessions/logout", ended, method="DELETE").status == 200
    before = dump(store)
    assert len(before) > 3
    with (
        started_from(copy, backend, store) as denying,
        started_from(copy, backend, store, on_store_failure="allow_verified") as allowing,
    ):
        for _ in range(20):
            for bearing in (live, ended, token(someone())):
                world = World(denying.url, lambda: backend.reached)
                answer = world.refused("/", bearing)
                assert (answer.status, b"store_unavailable" in answer.body) == (503, True)
                (seconds,) = answer.get_all("Retry-After")
                assert seconds in RETRY_SOON
                assert world.refused("/sessions/logout", bearing, method="DELETE").status == 503
        degraded = World(allowing.url, lambda: backend.reached).passed("/", live)
        assert degraded.get_all("x-gatekeeper-degraded") == ["1"]
        for gate in (denying, allowing):
            answer = gate.ready()
            assert answer.status == 503
            assert f"format {SCHEMA}".encode() in answer.body
            assert b"format 77" in answer.body
            assert gate.metric("gatekeeper_store_errors_total", kind="schema") >= 1
            assert gate.metric("gatekeeper_store_up") == 0
            (line,) = eventually(partial(events_with, gate, "format 77"))
            assert f"format {SCHEMA}" in line
            assert f"run a release with format {SCHEMA}" in line
        with run_from(copy):
            done = command("check", "--online", redis_url=store.url, upstream_url=backend.url)
            assert (done.returncode, "format 77" in done.stdout) == (1, True), done.stdout
            for arguments in (("sessions", "list", "1"), ("sessions", "revoke", "1", "--all"), ("audit", "export")):
                done = command(*arguments, redis_url=store.url)
                assert (done.returncode, "format 77" in done.stderr) == (1, True), done
    assert dump(store) == before
    # And back: nothing is lost.
    with sidecar(backend.url, redis_url=store.url) as gate:
        world = World(gate.url, lambda: backend.reached)
        world.passed("/", live)
        assert world.refused("/", ended).status == 401
        assert gate.ready().status == 200


def test_one_that_runs_notices_that_the_format_has_changed(store: Store, backend: Backend) -> None:
    bearing = token(someone())
    with sidecar(backend.url, redis_url=store.url) as gate:
        world = World(gate.url, lambda: backend.reached)
        world.passed("/", bearing)
        assert store.client.hget("gk:epoch", "schema") == str(SCHEMA)
        store.client.hset("gk:epoch", "schema", "77")
        eventually(lambda: gate.ready().status == 503)
        before = dump(store)
        assert world.refused("/", bearing).status == 503
        assert dump(store) == before
        store.client.hset("gk:epoch", "schema", str(SCHEMA))
        eventually(lambda: gate.ready().status == 200)
        world.passed("/", bearing)
        # Where there is none, it is ours: so began those that wrote no number.
        store.client.hdel("gk:epoch", "schema")
        eventually(lambda: store.client.hget("gk:epoch", "schema") == str(SCHEMA))
        world.passed("/", bearing)
