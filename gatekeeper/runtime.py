"""All that judges a request and signs people in, ready to use; what `compose` builds and the middleware works with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.oauth import BackChannelLogout, IntrospectionClients, TokenEndpoints
from gatekeeper.auth.observed_sign_in import SignInServices
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.dialects.router import Router
from gatekeeper.errors import KeysUnavailable, StoreUnavailable
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import IdentityHeaders
from gatekeeper.http.origins import Origins
from gatekeeper.http.paths import PathTable
from gatekeeper.sessions.device import warm_up
from gatekeeper.sessions.housekeeping import Housekeeping
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.sessions.revocations import RevocationListener
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import EmbeddedValkey
from gatekeeper.store.epoch import BEAT_SECONDS, Epoch
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.keys import Keys
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.verify_queue import VerifyQueue

_MEET_SECONDS = 1.0

_log = logging.getLogger("gatekeeper")


class Engine:
    """All that judges a request, ready to use. `start` and `aclose` belong to the event loop that uses it."""

    def __init__(
        self,
        *,
        gate: Gate,
        manager: Manager,
        parts: SignInServices,
        issuing: IssuedSignIn | None,
        provider: TokenEndpoints,
        clients: IntrospectionClients,
        backchannel: BackChannelLogout | None,
        endpoints: Sequence[Endpoint],
        key_set: Any,
        cookie_transport: bool,
        router: Router,
        paths: PathTable,
        identity: IdentityHeaders,
        sources: TokenSources,
        trusted: TrustedProxies,
        origins: Origins,
        language: str,
        telemetry: Telemetry,
        scripts: StoreClient,
        epoch: Epoch,
        breaker: Breaker,
        streams: OpenStreams,
        ends: RevocationListener,
        housekeeping: Housekeeping,
        keys: Keys,
        verify_queue: VerifyQueue,
        embedded: EmbeddedValkey | None,
        connect: Callable[[], Any],
        forward_authorization: bool,
        leeway_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.gate = gate
        self.manager = manager
        self.parts = parts
        self.issuing = issuing
        self.provider = provider
        self.clients = clients
        self.backchannel = backchannel
        self.endpoints = endpoints
        self.key_set = key_set
        self.cookie_transport = cookie_transport
        self.router = router
        self.paths = paths
        self.identity = identity
        self.sources = sources
        self.trusted = trusted
        self.origins = origins
        self.language = language
        self.telemetry = telemetry
        self.forward_authorization = forward_authorization
        self.streams = streams
        self.verify_queue = verify_queue
        self.started = False
        self._scripts = scripts
        self._epoch = epoch
        self._breaker = breaker
        self._ends = ends
        self._housekeeping = housekeeping
        self._keys = keys
        self._embedded = embedded
        self._connect = connect
        self._application_client: Any = None
        self._leeway_seconds = leeway_seconds
        self._wall_clock = wall_clock
        # The store's clock less this host's, in seconds, when it was last asked.
        self._skew = 0.0
        self._starting: asyncio.Lock | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Engine [{'started' if self.started else 'not started'}] {self._scripts!r} {self._keys!r}>"

    @property
    def claimed(self) -> list[str]:
        """Every path that is Gatekeeper's own, with its method."""
        routes = [*(endpoint.route for endpoint in self.endpoints), *self.router.routes()]
        return [f"{route.method} {route.template}" for route in routes]

    def address_of(self, client: str, peer: str | None) -> str | None:
        """The client's address where it is one client's. A private peer without trusted proxies is a proxy that nobody
        told us of: everybody would be one address."""
        return client if self.trusted.can_tell_clients_apart(peer) else None

    @property
    def redis_client(self) -> Any:
        """A client of the store for the application, with connections of its own: verdicts do not wait for those.
        What is there is Gatekeeper's: to be read."""
        if self._application_client is None:
            self._application_client = self._connect()
        return self._application_client

    async def start(self) -> None:
        """Starts what runs beside the requests; a second call does nothing. Raises `EmbeddedStoreFailed`."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self.started:
                return
            await asyncio.to_thread(warm_up)
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.start)
                self._tasks.append(asyncio.create_task(self._embedded.watch()))
            besides = (self._probe(), self._ends.listen(), self.streams.watch(), self._housekeeping.run())
            for beside in besides:
                self._tasks.append(asyncio.create_task(beside))
            # No call is made before the store was met. One that does not answer is waited for a moment, and no longer.
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(_MEET_SECONDS):
                    await self._epoch.beat()
            self.started = True

    async def aclose(self) -> None:
        """Ends all of it. The embedded store ends with its last user."""
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            # Once may not be enough: up to Python 3.11, wait_for() in redis-py can swallow it (cpython issue 86296).
            await asyncio.wait(running, timeout=0.05)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.started = False
        self._starting = None
        if self.issuing is not None:
            await self.issuing.aclose()
        await self._housekeeping.aclose()
        await self._breaker.aclose()
        await self._epoch.aclose()
        await self._scripts.aclose()
        if self._application_client is not None:
            await self._application_client.aclose()
            self._application_client = None
        await self._keys.aclose()
        self.telemetry.close()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

    async def faults(self) -> list[str]:
        """Why this engine cannot judge requests now; empty when it can. Asks the store and the keys."""
        store = await self._store_fault()
        return [*([store] if store else []), *await self._other_faults()]

    async def _store_fault(self) -> str | None:
        """Asks the store, unless the breaker does so already."""
        if self._breaker.fault is None:
            try:
                self._skew = await self._store_clock() - self._wall_clock()
            except StoreUnavailable as error:
                self.telemetry.metrics.store_failed(error.kind)
                self.telemetry.metrics.store_is_up(False)
                return str(error)
            self.telemetry.metrics.store_is_up(self._breaker.fault is None)
        return None if self._breaker.fault is None else str(self._breaker.fault)

    async def _store_clock(self) -> float:
        clock = await self._epoch.beat()
        # Of a Cluster that has asked one node.
        return await self._scripts.time() if self._scripts.is_cluster else clock

    async def _other_faults(self) -> list[str]:
        found: list[str] = []
        if abs(self._skew) > max(self._leeway_seconds, 1.0):
            found.append(f"the clocks of this host and of the store are {abs(self._skew):.0f} s apart")
        if not self._keys.ready:
            try:
                await self._keys.refresh()
            except KeysUnavailable as error:
                found.append(str(error))
        self.telemetry.metrics.jwks_keys.set(getattr(self._keys, "key_count", 0))
        return found

    async def store_warnings(self) -> list[str]:
        """What about the store's configuration endangers sessions. Raises `StoreUnavailable`."""
        found: list[str] = []
        policy = await self._scripts.configuration("maxmemory-policy")
        if policy not in {None, "noeviction"}:
            found.append(
                f"the store's maxmemory-policy is {policy}: under pressure it forgets sessions, ended ones too; "
                "set it to noeviction"
            )
        wanted = self._scripts.replicas
        connected = await self._scripts.connected_replicas() if wanted else None
        if connected is not None and connected < wanted:
            found.append(f"the store has {connected} replicas and STORE_REPLICAS is {wanted}: nothing opens or ends")
        append_only, save = [await self._scripts.configuration(name) for name in ("appendonly", "save")]
        if append_only == "no" and not save:
            found.append("the store does not persist: a restart of it forgets which sessions have ended")
        return found

    async def _probe(self) -> None:
        """Looks after the store and the keys when nobody asks. Of the store's faults the breaker tells the log."""
        known: list[str] = []
        while True:
            await self._store_fault()
            found = await self._other_faults()
            if found != known:
                for fault in found or ["ready"]:
                    (_log.warning if found else _log.info)(fault)
                known = found
            await asyncio.sleep(BEAT_SECONDS)
