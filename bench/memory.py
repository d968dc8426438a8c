"""The memory of sessions in the store, and proof that they leave nothing behind.

    python -m bench.memory bytes [--sessions 100000] [--a-user 3] [--agent …] [--server redis-server]
    python -m bench.memory churn [--sessions 1000000] [--server redis-server]

`bytes` opens sessions with a user agent of 120 bytes and asks the store what each key takes
(`MEMORY USAGE … SAMPLES 0`: all of it, keys and allocator included). `churn` opens sessions that live for a second and
waits until the store is as it was; the audit stream, which is bounded, stays. Both start a store of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from gatekeeper.models import Claims, Client
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import server_binary

# 120 bytes. Few common ones take more in a record: a model repeats nothing (gatekeeper/sessions/user_agents.py).
_AGENT: Final = (
    "Mozilla/5.0 (Linux; Android 12; moto g(50)) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 "
    "Mobile Safari/537.36"
)
_AT_ONCE: Final = 500
_CALLS_A_KEY: Final = 1000


@contextmanager
def _server(binary: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gk-bench-") as folder:
        path = Path(folder) / "store.sock"
        # Its log of slow commands takes memory that sessions do not.
        quiet = ["--save", "", "--slowlog-log-slower-than", "-1"]
        command = [binary, "--port", "0", "--unixsocket", str(path), "--dir", folder, *quiet]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.kill()
            process.wait()


def _store(url: str, *, seconds: float) -> tuple[StoreClient, ScriptRunner]:
    store_client = StoreClient(url, timeout_seconds=60)
    rules = Rules(
        session_seconds=seconds,
        idle_seconds=None if seconds < 60 else 1800,
        ended_seconds=seconds,
        device_limit=None,
        policy="evict_idle",
        adopt_unknown=True,
        leeway_seconds=0,
    )
    return store_client, ScriptRunner(store_client, key_prefix="gk:", rules=rules)


def _token(number: int, lives: float, a_user: int) -> Claims:
    # As long as a UUID in hexadecimal, which is what a `jti` usually is.
    jti = f"{number:032x}"
    now = time.time()
    return Claims(
        user=str(10_000_000 + number // a_user),
        reference=jti,
        jti=jti,
        roles=(),
        is_admin=False,
        issued_at=now,
        expires_at=now + lives,
        claims={},
    )


async def _open(
    store: SessionStore, runner: ScriptRunner, numbers: range, lives: float, a_user: int = 3, user_agent: str = _AGENT
) -> None:
    client = Client(ip_address="203.0.113.117", user_agent=user_agent)
    for start in range(numbers.start, numbers.stop, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, numbers.stop))
        await asyncio.gather(*(store.check(_token(number, lives, a_user), client) for number in some))
        await runner.outbox.flush()


async def measure_bytes(url: str, sessions: int, a_user: int, user_agent: str = _AGENT) -> dict[str, float]:
    """Bytes a session, by what they are for, in a store that is empty."""
    store_client, runner = _store(url, seconds=86_400)
    await _open(SessionStore(runner), runner, range(sessions), 900, a_user, user_agent)
    await store_client.aclose()
    taken: Counter[str] = Counter()
    with redis.Redis.from_url(url) as client:
        keys: list[bytes] = list(client.scan_iter(count=_CALLS_A_KEY))
        for start in range(0, len(keys), _CALLS_A_KEY):
            some = keys[start : start + _CALLS_A_KEY]
            pipeline = client.pipeline(transaction=False)
            for key in some:
                pipeline.execute_command("MEMORY USAGE", key, "SAMPLES", 0)
            for key, size in zip(some, pipeline.execute(), strict=True):
                taken[key.rpartition(b":")[2].decode()] += size
    return {name: size / sessions for name, size in taken.most_common()}


def together(rows: Mapping[str, float]) -> float:
    """Bytes a session, without the audit stream, which is bounded."""
    return sum(size for name, size in rows.items() if name not in {"audit", "routine"})


def _version(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("server")
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    return f"{name} {info.get('valkey_version') or info['redis_version']}"


async def churn(url: str, sessions: int, *, batch: int = 20_000) -> tuple[int, int, set[str]]:
    """Opens sessions that live for a second and waits until they have left. Bytes before and after, without the audit
    stream, and the keys that are there at the end."""
    store_client, runner = _store(url, seconds=1.0)
    store = SessionStore(runner)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        # Scripts are loaded and connections open, and stay so.
        await _open(store, runner, range(1), 1)
        await _until_gone(store, runner, client)
        before = _used(client)
        for start in range(0, sessions, batch):
            await _open(store, runner, range(start, min(start + batch, sessions)), 1)
            await store.settle_due(1000)
        await _until_gone(store, runner, client)
        left = set(client.keys("*"))
        after = _used(client)
    await store_client.aclose()
    return before, after, left


async def _until_gone(store: SessionStore, runner: ScriptRunner, client: redis.Redis) -> None:
    while client.dbsize() > 1:
        await runner.outbox.flush()
        await runner.outbox.sweep()
        if not await store.settle_due(1000):
            await asyncio.sleep(0.2)


def _used(client: redis.Redis) -> int:
    """Bytes that the store has allocated, without the audit stream."""
    client.delete("gk:audit", "gk:audit:routine")
    # Tables shrink, and what was deleted is freed, a little later.
    time.sleep(2)
    info: Any = client.info("memory")
    return int(info["used_memory"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("what", choices=["bytes", "churn"])
    parser.add_argument("--sessions", type=int)
    parser.add_argument("--a-user", type=int, default=3, help="sessions of one user")
    parser.add_argument("--agent", default=_AGENT, help="the user agent")
    parser.add_argument("--server", default=server_binary(), help="the binary of a Valkey or a Redis")
    asked = parser.parse_args()
    with _server(asked.server) as url:
        if asked.what == "bytes":
            sessions = asked.sessions or 100_000
            print(
                f"{_version(url)}, {sessions} sessions, {asked.a_user} a user, a user agent of {len(asked.agent)} bytes"
            )
            rows = asyncio.run(measure_bytes(url, sessions, asked.a_user, asked.agent))
            for name, size in rows.items():
                print(f"{name:12} {size:8.1f}")
            print(f"{'a session':12} {together(rows):8.1f}  without the audit stream, which is bounded")
            return
        began = time.monotonic()
        before, after, left = asyncio.run(churn(url, asked.sessions or 1_000_000))
        print(f"{asked.sessions or 1_000_000} sessions came and went in {time.monotonic() - began:.0f} s")
        print(f"before {before} bytes, after {after} bytes; keys that are left: {sorted(left)}")


if __name__ == "__main__":
    main()
