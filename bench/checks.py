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
import time
from collections.abc import Sequence
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
_PICKS: Final = 100_000
# A token keeps its expiry: a check that comes with a later one writes a record.
_SIGNED_IN_AT: Final = time.time()
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
        issued_at=_SIGNED_IN_AT,
        expires_at=_SIGNED_IN_AT + _DAY_SECONDS,
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


async def recorded(store: SessionStore, numbers: Sequence[int]) -> list[bytes]:
    """Checks of known sessions as the client writes them, in pipelines."""
    waiting, commands = iter(numbers), []

    async def caller() -> None:
        for number in waiting:
            claims = claims_of(number)
            await store.check(claims, _CLIENT)
            touch = store.touch(claims, exempt=False)
            if touch is None:
                raise RuntimeError(f"session {number} is not known")
            commands.append(touch.packed)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    whole = len(commands) // PIPELINE
    return [b"".join(commands[number * PIPELINE : (number + 1) * PIPELINE]) for number in range(whole)]


def ceiling(plain: redis.Redis, pipelines: list[bytes], seconds: float) -> tuple[float, float]:
    """Checks a second that the store does while nothing else runs, and the microseconds of its processor for each. The
    replies are counted, not parsed."""
    reader, answered, number = hiredis.Reader(), 0, 0
    port, busy = plain.connection_pool.connection_kwargs["port"], _processor_seconds(plain)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds:
            while number * PIPELINE - answered <= (IN_FLIGHT - 1) * PIPELINE:
                connection.sendall(pipelines[number % len(pipelines)])
                number += 1
            reader.feed(connection.recv(1 << 20))
            while (answer := reader.gets()) is not False:
                if not isinstance(answer, list) or answer[1] != b"touched":
                    raise TypeError(f"the store answered {answer!r}")
                answered += 1
        rate = answered / (time.perf_counter() - begun)
        return rate, (_processor_seconds(plain) - busy) / answered * 1e6


async def measure(port: int, rounds: int, seconds: float, most: int) -> dict[str, Any]:
    """Client and ceiling in turn with 1,000 sessions, then the client with ten times as many, up to `most`."""
    plain = redis.Redis(port=port)
    plain.flushall()
    store_client, store = open_store(f"redis://127.0.0.1:{port}/0")
    await check_all(store, range(FIRST_STEP))
    pipelines = await recorded(store, _picks(FIRST_STEP))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(await checks_a_second(store, FIRST_STEP, seconds))
        theirs.append(ceiling(plain, pipelines, seconds)[0])
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
        pipelines = await recorded(store, _picks(steps))
        costs = [ceiling(plain, pipelines, seconds)[1] for _ in range(rounds)]
        growth.append({"sessions": steps, "checks": median(rates), "store_us": median(costs), "bytes": used})
        steps *= 10
    return growth


def _picks(sessions: int) -> list[int]:
    """Sessions at random: so many that their keys have left the processor's cache when their turn comes again."""
    return [random.randrange(sessions) for _ in range(_PICKS)]


def _processor_seconds(plain: redis.Redis) -> float:
    found: Any = plain.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


def _memory(plain: redis.Redis) -> int:
    """In use, without the buffers of connections."""
    found: Any = plain.info("memory")
    return int(found["used_memory"]) - int(found["mem_clients_normal"])


def main(port: str, rounds: str, seconds: str, sessions: str) -> None:
    print(json.dumps(uvloop.run(measure(int(port), int(rounds), float(seconds), int(sessions)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
