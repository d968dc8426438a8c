"""The check alone: Gatekeeper's store client in one process, against the same commands sent as fast as the store takes
them, and with more and more sessions in the store.

`python -m bench.checks PORT ROUNDS SECONDS SESSIONS`; the result is one line of JSON, of what `report.py` shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import hiredis
import redis
import uvloop

from gatekeeper.models import Claims, Client
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient

CALLERS: Final = 256
PIPELINE: Final = 128
IN_FLIGHT: Final = 4
FIRST_STEP: Final = 1_000
_DAY_SECONDS: Final = 86_400.0
_RECORDED_PASSES: Final = 10
# 120 bytes.
_AGENT: Final = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 "
    "Extra/1"
)
_CLIENT: Final = Client(ip_address="203.0.113.7", user_agent=_AGENT)
_RULES: Final = Rules(
    session_seconds=_DAY_SECONDS,
    idle_seconds=1800.0,
    ended_seconds=_DAY_SECONDS,
    device_limit=3,
    policy="evict_idle",
    adopt_unknown=True,
    leeway_seconds=10.0,
)


def open_store(url: str) -> tuple[StoreClient, SessionStore]:
    """With the settings as shipped."""
    store_client = StoreClient(url, timeout_seconds=10.0)
    return store_client, SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=_RULES))


def claims_of(number: int) -> Claims:
    """One session a user."""
    return Claims(
        user=f"user-{number}",
        reference=f"{number:032x}",
        jti=f"{number:032x}",
        roles=(),
        is_admin=False,
        issued_at=time.time(),
        expires_at=time.time() + _DAY_SECONDS,
        claims={},
    )


async def check_all(store: SessionStore, numbers: range) -> None:
    """Each once; opens those that are not there."""
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await store.check(claims_of(number), _CLIENT)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def checks_a_second(store: SessionStore, sessions: int, seconds: float) -> float:
    """Of sessions at random among the first `sessions`, by callers that each wait for their answer."""
    known = [claims_of(random.randrange(sessions)) for _ in range(50_000)]
    count, over = 0, time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal count
        while time.perf_counter() < over:
            number = (number + 1) % len(known)
            await store.check(known[number], _CLIENT)
            count += 1

    begun = time.perf_counter()
    await asyncio.gather(*(caller(number * len(known) // CALLERS) for number in range(CALLERS)))
    return count / (time.perf_counter() - begun)


async def recorded(port: int) -> list[bytes]:
    """Checks of known sessions as the client writes them, in pipelines: recorded between the client and the store."""
    written: list[bytearray] = []

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_store, to_store = await asyncio.open_connection("127.0.0.1", port)
        heard = bytearray()
        written.append(heard)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray | None) -> None:
            while data := await source.read(65_536):
                if kept is not None:
                    kept += data
                target.write(data)
            target.close()

        await asyncio.gather(copy(reader, to_store, heard), copy(from_store, writer, None))

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        server = await asyncio.start_unix_server(between, path)
        store_client, store = open_store(f"unix://{path}")
        await check_all(store, range(FIRST_STEP))
        for heard in written:
            heard.clear()
        for _ in range(_RECORDED_PASSES):
            await check_all(store, range(FIRST_STEP))
        await store_client.aclose()
        server.close()
    return _pipelines(written)


def _pipelines(written: list[bytearray]) -> list[bytes]:
    reader = hiredis.Reader()
    for heard in written:
        reader.feed(bytes(heard))
    commands = []
    while (command := reader.gets()) is not False:
        commands.append(hiredis.pack_command(tuple(command)))
    commands = [command for command in commands if b"EVALSHA" in command[:32]]
    if len(commands) != _RECORDED_PASSES * FIRST_STEP:
        raise RuntimeError(f"{len(commands)} commands for {_RECORDED_PASSES * FIRST_STEP} checks")
    whole = len(commands) // PIPELINE
    return [b"".join(commands[number * PIPELINE : (number + 1) * PIPELINE]) for number in range(whole)]


def ceiling(port: int, pipelines: list[bytes], seconds: float) -> float:
    """Checks a second that the store does while nothing else runs. The replies are counted, not parsed."""
    reader, answered, number = hiredis.Reader(), 0, 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds:
            while number * PIPELINE - answered <= (IN_FLIGHT - 1) * PIPELINE:
                connection.sendall(pipelines[number % len(pipelines)])
                number += 1
            reader.feed(connection.recv(1 << 20))
            while (answer := reader.gets()) is not False:
                if not isinstance(answer, list):
                    raise TypeError(f"the store answered {answer!r}")
                answered += 1
        return answered / (time.perf_counter() - begun)


async def measure(port: int, rounds: int, seconds: float, most: int) -> dict[str, Any]:
    """Client and ceiling in turn with 1,000 sessions, then the client with ten times as many, up to `most`."""
    plain = redis.Redis(port=port)
    plain.flushall()
    store_client, store = open_store(f"redis://127.0.0.1:{port}/0")
    await check_all(store, range(FIRST_STEP))
    pipelines = await recorded(port)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(await checks_a_second(store, FIRST_STEP, seconds))
        theirs.append(ceiling(port, pipelines, seconds))
    growth = await _growth(store, plain, rounds, seconds, most)
    await store_client.aclose()
    plain.close()
    return {
        "checks": median(ours),
        "ceiling": median(theirs),
        "ratio": median(one / other for one, other in zip(ours, theirs, strict=True)),
        "growth": growth,
    }


async def _growth(
    store: SessionStore, plain: redis.Redis, rounds: int, seconds: float, most: int
) -> list[dict[str, float]]:
    plain.flushall()
    empty = _memory(plain)
    there, steps, growth = 0, FIRST_STEP, []
    while steps <= most:
        await check_all(store, range(there, steps))
        there = steps
        used = (_memory(plain) - empty) / steps
        rates = [await checks_a_second(store, steps, seconds) for _ in range(rounds)]
        growth.append({"sessions": steps, "checks": median(rates), "bytes": used})
        steps *= 10
    return growth


def _memory(plain: redis.Redis) -> int:
    """In use, without the buffers of connections."""
    found: Any = plain.info("memory")
    return int(found["used_memory"]) - int(found["mem_clients_normal"])


def main(port: str, rounds: str, seconds: str, sessions: str) -> None:
    print(json.dumps(uvloop.run(measure(int(port), int(rounds), float(seconds), int(sessions)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
