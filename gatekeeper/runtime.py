"""The root of a running process: which services start and close, in which order, and whether requests can be judged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

from gatekeeper.errors import KeysUnavailable, StoreUnavailable
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.epoch import BEAT_SECONDS, Epoch
from gatekeeper.telemetry.metrics import Metrics
from gatekeeper.tokens.keys import KeySource

_CANCEL_AGAIN_SECONDS: Final = 0.05
# As many as open the breaker of a single server.
_MISSES_TO_TELL: Final = 3

_log = logging.getLogger("gatekeeper")


async def _nothing() -> None:
    pass


class Service(NamedTuple):
    """Something with a beginning and an end. `start` may raise, and is then called again at the next start; `close`
    also works on a service that never started."""

    start: Callable[[], Awaitable[None]] = _nothing
    close: Callable[[], Awaitable[None]] = _nothing


def background(run: Callable[[], Coroutine[Any, Any, None]]) -> Service:
    """A coroutine that runs beside the requests until it is cancelled."""
    tasks: list[asyncio.Task[None]] = []

    async def start() -> None:
        tasks.append(asyncio.create_task(run()))

    async def close() -> None:
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            # Once may not be enough: up to Python 3.11, wait_for() in redis-py can swallow it (cpython issue 86296).
            await asyncio.wait(running, timeout=_CANCEL_AGAIN_SECONDS)
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()

    return Service(start, close)


class Runtime:
    """Starts services in their order and closes them in the reverse one. Belongs to the event loop that started it."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.started = False
        self._services = services
        self._running = 0
        self._starting: asyncio.Lock | None = None

    def __repr__(self) -> str:
        return f"<Runtime [{'started' if self.started else 'not started'}]>"

    @property
    def has_begun(self) -> bool:
        """True from the start of the first service until everything is closed."""
        return self.started or self._running > 0

    async def start(self) -> None:
        """Start what has not started yet; a second call does nothing. Raises `EmbeddedStoreFailed`."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            for service in self._services[self._running :]:
                await service.start()
                self._running += 1
            self.started = True

    async def aclose(self) -> None:
        """Close every service, started or not; the embedded store ends with its last user."""
        self.started = False
        self._starting = None
        self._running = 0
        for service in reversed(self._services):
            await service.close()


def _failovers_survived(wanted: int, connected: int) -> str:
    """Say which failovers keep the revocations that were acknowledged, where `wanted` of `connected` replicas confirm
    each."""
    found = f"the store has {connected} replicas and STORE_REPLICAS is {wanted}: "
    if connected < wanted:
        return found + "nothing opens or ends"
    if connected == wanted:
        return found + (
            "acknowledged revocations survive a crash of the primary, a planned failover and a partition; "
            "while a replica is away nothing opens or ends"
        )
    may_lose = "may take back acknowledged revocations, unless the Gatekeeper that made them lives to repeat them"
    if not wanted:
        return found + f"every failover {may_lose}; set STORE_REPLICAS"
    return found + (
        "acknowledged revocations survive a crash of the primary; "
        f"a planned failover or a partition {may_lose}; {connected} keeps them there too"
    )


class Readiness:
    """Answers whether requests can be judged now: the store and the keys answer, and the clocks agree. `other_rules`
    says how the rules in the store differ from those of this process (shared_rules.py), and `store_problem` why an
    embedded store is down, where that is known."""

    def __init__(
        self,
        *,
        client: StoreClient,
        epoch: Epoch,
        breaker: Breaker,
        keys: KeySource,
        metrics: Metrics,
        leeway_seconds: float,
        other_rules: Callable[[], Awaitable[list[str]]],
        store_problem: Callable[[], str | None] = lambda: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._epoch = epoch
        self._breaker = breaker
        self._keys = keys
        self._metrics = metrics
        self._leeway_seconds = leeway_seconds
        self._other_rules = other_rules
        self._store_problem = store_problem
        self._wall_clock = wall_clock
        # The store's clock less this host's, in seconds, when it was last asked.
        self._skew = 0.0

    def __repr__(self) -> str:
        return f"<Readiness of {self._client!r} {self._keys!r}>"

    async def faults(self, *, of_store: bool = True) -> list[str]:
        """Ask the store and the keys: the reasons why no request can be judged now, empty when all is well."""
        store = await self._store_fault() if of_store else None
        return [*([store] if store else []), *await self._other_faults()]

    async def _store_fault(self) -> str | None:
        """Ask the store, unless the breaker does so already."""
        if self._breaker.fault is None:
            try:
                self._skew = await self._store_clock() - self._wall_clock()
            except StoreUnavailable as error:
                self._metrics.store_failed(error.kind)
                self._metrics.store_is_up(False)
                return self._store_problem() or str(error)
            self._metrics.store_is_up(self._breaker.fault is None)
        return None if self._breaker.fault is None else self._store_problem() or str(self._breaker.fault)

    async def _store_clock(self) -> float:
        clock = await self._epoch.beat()
        # Of a Cluster, that has asked one node.
        return await self._client.time() if self._client.is_cluster else clock

    async def _other_faults(self) -> list[str]:
        found: list[str] = []
        if abs(self._skew) > max(self._leeway_seconds, 1.0):
            found.append(f"the clocks of this host and of the store are {abs(self._skew):.0f} s apart")
        if not self._keys.ready:
            try:
                await self._keys.refresh()
            except KeysUnavailable as error:
                found.append(str(error))
        self._metrics.jwks_keys.set(getattr(self._keys, "key_count", 0))
        return found

    async def store_warnings(self) -> list[str]:
        """Read the store's configuration for what endangers sessions. Raises `StoreUnavailable`."""
        found: list[str] = []
        policy = await self._client.configuration("maxmemory-policy")
        if policy not in {None, "noeviction"}:
            found.append(
                f"the store's maxmemory-policy is {policy}: under memory pressure it drops sessions, ended ones too; "
                "set it to noeviction"
            )
        connected = await self._client.connected_replicas()
        if connected is not None and connected != self._client.replicas:
            found.append(_failovers_survived(self._client.replicas, connected))
        append_only, save = [await self._client.configuration(name) for name in ("appendonly", "save")]
        if append_only == "no" and not save:
            found.append("the store does not persist: a restart of it forgets which sessions have ended")
        if others := await self._other_rules():
            found.append(f"the Gatekeeper that started last on this store has other settings: {'; '.join(others)}")
        return found

    async def store_notes(self) -> list[str]:
        """Say what holds because of how the store is set up. Raises `StoreUnavailable`."""
        wanted = self._client.replicas
        if not wanted or await self._client.connected_replicas() != wanted:
            return []
        return [_failovers_survived(wanted, wanted)]

    async def watch(self) -> None:
        """Check at each beat and log what changes. The store's faults are logged by the breaker; of a Cluster, whose
        breaker does not open, they are logged here."""
        known: list[str] = []
        misses = 0
        while True:
            fault = await self._store_fault()
            if self._client.is_cluster:
                if fault is None and misses >= _MISSES_TO_TELL:
                    _log.info("session store works again")
                misses = misses + 1 if fault is not None else 0
                if misses == _MISSES_TO_TELL:
                    _log.warning("gatekeeper not ready: %s", fault)
            found = await self._other_faults()
            self._metrics.settle()
            if found != known:
                for fault in found:
                    _log.warning("gatekeeper not ready: %s", fault)
                if not found:
                    _log.info("gatekeeper ready")
                known = found
            await asyncio.sleep(BEAT_SECONDS)
