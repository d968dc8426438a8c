"""A real store for every test that asks for one: a process of its own, on a unix socket, emptied between tests."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from hypothesis import HealthCheck, settings

from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import server_binary
from tests.waiting import HANG_SECONDS, START_SECONDS

# Hundreds of processes are started: without their byte code, each would take three times as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where most tests start sidecars, backends or the command, try thousands of steps, or wait for time to pass.
_SLOW = frozenset(
    {
        *("system", "faults", "test_cli.py", "test_cli_audit.py", "test_differential.py"),
        *("test_store_law.py", "test_sign_in_law.py", "test_login_check_faults.py"),
        *("test_websocket.py", "test_departures.py", "test_session_end.py"),
    }
)
# A slow machine is no failure: neither is an example that takes long there, nor making it.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `make check` takes this one.
settings.register_profile("quick", settings.get_profile("all"), max_examples=25)
settings.load_profile("all")
RULES = Rules(
    session_seconds=86_400,
    idle_seconds=1_800,
    ended_seconds=86_400,
    device_limit=3,
    policy="evict_idle",
    adopt_unknown=True,
    leeway_seconds=0,
)


class MakeStore(Protocol):
    """Makes a store with a client of its own; the arguments replace the default rules above."""

    def __call__(self, **rules: Any) -> SessionStore: ...


@contextmanager
def store_process(binary: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that keeps nothing; yields its URL and its process. Its folder has a short name: so must a socket."""
    with tempfile.TemporaryDirectory(prefix="gk-") as folder:
        path = Path(folder) / "store.sock"
        command = [binary, "--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", "", *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            wait_for_store(f"unix://{path}")
            yield f"unix://{path}", process
        finally:
            process.kill()
            process.wait()


def wait_for_store(url: str) -> None:
    """Until the server at `url` answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with redis.Redis.from_url(url) as client:
                client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, f"no store at {url}"
            time.sleep(0.01)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with much that is slow come first: at the end of a run all processes have something to do."""
    for item in items:
        if not _SLOW.isdisjoint(item.path.parts):
            item.add_marker("slow")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def store_server() -> Iterator[str]:
    """The URL of a Valkey that lives as long as the test run."""
    with store_process(server_binary()) as (url, _):
        yield url


@pytest.fixture
def store_url(store_server: str) -> str:
    """The URL of an empty store."""
    with redis.Redis.from_url(store_server) as client:
        client.flushall()
    return store_server


@pytest.fixture
async def make_store(store_url: str) -> AsyncIterator[MakeStore]:
    made: list[StoreClient] = []

    def make(**rules: Any) -> SessionStore:
        made.append(StoreClient(store_url, timeout_seconds=HANG_SECONDS))
        settled = {name: rules.get(name, getattr(RULES, name)) for name in Rules.__struct_fields__}
        assert not rules.keys() - settled.keys(), "no such rule"
        return SessionStore(ScriptRunner(made[-1], key_prefix="gk:", rules=Rules(**settled)))

    yield make
    for store_client in made:
        await store_client.aclose()
