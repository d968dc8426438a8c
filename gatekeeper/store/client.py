"""The hop to the store: scripts by their hash, in batches, wherever the keys of a user lie.

What may have run is never sent again. What certainly had no effect is, within its time: a script that the server does
not know, and one that a server refused which is loading, has become a replica, or no longer has the slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from hiredis import ReplyError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.address import parse
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.command import Command, ReplyReceiver, Script
from gatekeeper.store.connection import PendingCall
from gatekeeper.store.errors import code_of, unavailable_from
from gatekeeper.store.queue import CommandQueue
from gatekeeper.store.routes import StoreRoute, make_route

# Refused before anything was written, for a reason that may pass. A script's own first write is refused with READONLY.
_MAY_PASS: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
_MOVES: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 0.2


class StoreClient:
    """Runs scripts and commands, in the order of the calls where the store is `ordered`. Each is bounded in time by
    `timeout_seconds`; `replicas` is how many must have what a durable one wrote. A `breaker` is asked before every call
    and told after it."""

    queue_class: Callable[..., CommandQueue] = CommandQueue

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        ca_file: str | None = None,
        replicas: int = 0,
        breaker: Breaker | None = None,
    ) -> None:
        self.breaker = breaker
        self._timeout_seconds = timeout_seconds
        make_queue = partial(
            self.queue_class,
            timeout_seconds=timeout_seconds,
            refused=self._refused,
            told=self._told,
        )
        address = parse(url, ca_file=ca_file)
        self.is_cluster: Final = address.kind == "cluster"
        self._route: StoreRoute = make_route(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        self._replicas = replicas
        self._paused: dict[PendingCall, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        lanes = self._route.lanes()
        waiting = sum(lane.waiting for lane in lanes) + len(self._paused)
        return f"<StoreClient [{waiting} waiting, {sum(lane.in_flight for lane in lanes)} in flight]>"

    @property
    def ordered(self) -> bool:
        """Whether calls made one after another arrive so, whatever their keys are."""
        return self._route.ordered

    @property
    def replicas(self) -> int:
        """How many must have what a durable call wrote."""
        return self._replicas

    # Calls

    def submit(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> asyncio.Future[Any]:
        """The script's answer to come, or `StoreUnavailable`: whether the script ran is then unknown. Sent with all
        others of this turn of the event loop. Raises `StoreUnavailable` where it is not sent at all."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        return self._submit(command, keys[0], script.source, durable=script.durable)

    def prepare(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Command:
        """This call, for `send`."""
        return script.command(keys, arguments)

    def send(self, call: Command) -> asyncio.Future[Any]:
        """As `submit`."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send_for(reply, call)
        return reply

    def send_for(self, reply: ReplyReceiver, call: Command) -> None:
        """As `submit`; `reply` is told."""
        source = None if call.script is None else call.script.source
        self._call(reply, call.words, call.key, source, durable=call.durable, packed=call.packed)

    async def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """The script's answer. Raises `StoreUnavailable`: whether the script ran is then unknown."""
        return await self.submit(script, keys, arguments)

    def drop_connections(self, key: bytes) -> None:
        """An answer was not to what was asked: leaves the connections that it may have come over."""
        self._route.drop_connections(key)

    async def probe(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """As `run`, past the breaker, which is told that it was an answer to a probe."""
        reply = await self.ask_past_guard(script, keys, arguments)
        self.vouch()
        return reply

    async def ask_past_guard(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """As `probe`, for several that are one probe together, after which comes `vouch`."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        return await self._submit(command, keys[0], script.source, is_probe=True)

    def vouch(self) -> None:
        """Tells the breaker that a probe was answered."""
        if self.breaker is not None:
            self.breaker.succeeded(probing=True)

    async def command(self, *command: Any) -> Any:
        """The answer to one plain command with a key. Raises `StoreUnavailable`."""
        return await self._submit(command, _key(command))

    async def write(self, *command: Any) -> Any:
        """As `command`, answered only when as many replicas have it as are asked for."""
        return await self._submit(command, _key(command), durable=True)

    def _submit(
        self, command: tuple[Any, ...], key: bytes, source: str | None = None, *, durable: bool = False, **more: Any
    ) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._call(reply, command, key, source, durable=durable, **more)
        return reply

    def _call(
        self,
        reply: ReplyReceiver,
        command: tuple[Any, ...],
        key: bytes,
        source: str | None,
        *,
        durable: bool,
        packed: bytes | None = None,
        is_probe: bool = False,
    ) -> None:
        if self.breaker is not None and not is_probe:
            self.breaker.check()
        try:
            # The clock of the event loop, without looking for the loop.
            deadline = time.monotonic() + self._timeout_seconds
            call = PendingCall(command, reply, deadline, source=source, durable=durable, key=key, packed=packed)
        except (TypeError, ValueError, OverflowError) as error:
            raise unavailable_from(error) from None
        self._route.lane(key, durable=durable).submit(call)

    def _told(self, error: StoreUnavailable | None, began_at: float) -> None:
        if self.breaker is None:
            return
        if error is None:
            self.breaker.succeeded()
        else:
            self.breaker.failed(error, began_at=began_at)

    # Refusals

    def _refused(self, lane: CommandQueue, call: PendingCall, error: ReplyError) -> None:
        code = code_of(error)
        if code == "NOSCRIPT" and call.command[0] == "EVALSHA":
            # Its text goes along: the store could forget it again between a SCRIPT LOAD and the call. Of many calls
            # that learn so together, the first one's text does for all; whom that does not help brings it itself.
            if call.attempts or not lane.brings(call.source):
                call.with_source()
            call.attempts += 1
            lane.again(call)
        elif code in ("MOVED", "ASK") and call.attempts < _MOVES:
            call.attempts += 1
            self._route.redirect(lane, call, str(error))
        elif code in _MAY_PASS or code in ("MOVED", "ASK"):
            if code == "READONLY":
                lane.retire()
            self._route.look_soon()
            self._later(lane, call, unavailable_from(error))
        else:
            lane.fail([call], error)

    def _later(self, lane: CommandQueue, call: PendingCall, fault: StoreUnavailable) -> None:
        call.fault = fault
        call.attempts += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(call.attempts - 1, 8), _PAUSE_SECONDS)
        loop = asyncio.get_running_loop()
        if loop.time() + pause < call.deadline:
            self._paused[call] = loop.call_later(pause, self._resubmit, lane, call)
        else:
            lane.fail([call], fault)

    def _resubmit(self, lane: CommandQueue, call: PendingCall) -> None:
        self._paused.pop(call, None)
        if not call.reply.done():
            call.asking = False
            # What has no key was for that server.
            (self._route.lane(call.key, durable=call.durable) if call.key else lane).again(call)

    # What is asked of the servers themselves

    async def key_on_each(self, key: bytes, held: Sequence[bytes]) -> list[bytes]:
        """`key`, and of a Cluster one key more, which begins with it, on every other primary that has slots. Of those
        `held` one stays as long as it lies there. Raises `StoreUnavailable`."""
        return await self._route.key_on_each(key, held)

    async def _ask_all(self, *command: Any) -> list[Any]:
        loop = asyncio.get_running_loop()
        if self.breaker is not None:
            self.breaker.check()
        deadline = loop.time() + self._timeout_seconds
        replies: list[asyncio.Future[Any]] = []
        for lane in await self._route.masters():
            replies.append(loop.create_future())
            lane.submit(PendingCall(command, replies[-1], deadline))
        return list(await asyncio.gather(*replies))

    async def time(self) -> float:
        """The store's clock, in seconds since 1970; of several servers' the one that is farthest from ours. Raises
        `StoreUnavailable`."""
        times = [float(seconds) + float(micros) / 1e6 for seconds, micros in await self._ask_all("TIME")]
        now = time.time()
        return max(times, key=lambda told: abs(told - now))

    async def connected_replicas(self) -> int | None:
        """How many replicas the server has that has fewest, None where they do not tell. Raises `StoreUnavailable`."""
        try:
            found = await self._ask_all("ROLE")
        except StoreUnavailable as error:
            if error.kind in {"refused", "denied"}:
                return None
            raise
        return min((len(role[2]) for role in found if isinstance(role, list) and role[:1] == [b"master"]), default=0)

    async def configuration(self, name: str) -> str | None:
        """One parameter of the servers, None where they do not tell (managed stores); the different values, if there
        are several. Raises `StoreUnavailable`."""
        try:
            found = await self._ask_all("CONFIG", "GET", name)
        except StoreUnavailable as error:
            if error.kind in {"refused", "denied"}:
                return None
            raise
        values = {pair[1].decode() for pair in found if isinstance(pair, list) and len(pair) == 2}
        return ", ".join(sorted(values)) if values else None

    async def aclose(self) -> None:
        """Lets the connections go. Who still waits gets `StoreUnavailable`."""
        for call, timer in self._paused.items():
            timer.cancel()
            call.fail(ConnectionError())
        self._paused.clear()
        await self._route.aclose()


def _key(command: tuple[Any, ...]) -> bytes:
    key = command[1]
    return key if isinstance(key, bytes) else str(key).encode()
