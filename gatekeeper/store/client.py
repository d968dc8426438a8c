"""A client of Redis for one server, Sentinel or Cluster: it sends commands in batches to wherever their keys are.

A call that may have run is never sent again. One that certainly had no effect is, until its deadline: the call of a
script that the server does not know, and a call that the server refuses because it is loading, has become a replica, or
no longer serves the slot.
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
from gatekeeper.store.command import Command, ReplyReceiver, server_command
from gatekeeper.store.connection import PendingCall
from gatekeeper.store.errors import code_of, unavailable_from, unexpected_reply
from gatekeeper.store.primaries import RecentWrites
from gatekeeper.store.queue import CommandQueue
from gatekeeper.store.routes import StoreRoute, make_route
from gatekeeper.store.subscription import Subscription

# Refusals before anything was written, which may pass. (A script is refused with READONLY at its first write.)
_TEMPORARY: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
_MAX_REDIRECTS: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.2


class StoreClient:
    """`call` sends a command and returns the reply; `send` does so for a caller that takes the reply in a callback.

    Calls of one turn of the event loop leave together, and arrive in order where the store is `ordered`. Each call is
    limited to `timeout_seconds`. Replies to durable commands are held back until `replicas` replicas have acknowledged
    the writes. The `breaker` is asked before every call, and informed of its outcome.
    """

    # Replaced in tests, which record what is sent.
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
            on_error_reply=self._error_reply,
            on_outcome=self._tell_breaker,
        )
        self._address = address = parse(url, ca_file=ca_file)
        self.is_cluster: Final = address.topology == "cluster"
        self.replicas: Final = replicas
        self._route: StoreRoute = make_route(address, make_queue, timeout_seconds=timeout_seconds, replicas=replicas)
        # Calls that are sent again after a pause.
        self._paused: dict[PendingCall, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        queues = self._route.queues()
        waiting = sum(queue.waiting for queue in queues) + len(self._paused)
        return f"<StoreClient [{waiting} waiting, {sum(queue.in_flight for queue in queues)} in flight]>"

    def take_credentials(self, url: str) -> bool:
        """Use the user and the password of `url` for new connections. Returns False if that names another store."""
        return self._address.take_credentials(parse(url))

    def repeat_at_new_primaries(self, recent: RecentWrites) -> None:
        """Have recent writes repeated at every primary that is met from now on, before any other call is sent to it."""
        self._route.met.recent = recent

    @property
    def ordered(self) -> bool:
        """True where calls arrive in the order in which they were made, whatever their keys are."""
        return self._route.ordered

    # Calls

    async def call(self, command: Command, *, is_probe: bool = False) -> Any:
        """Send a command and return its reply. A probe is sent even while the breaker is open.

        Raises `StoreUnavailable`. The command may have run nevertheless, unless `kind` is `open`.
        """
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send(command, reply, is_probe=is_probe)
        return await reply

    def send(self, command: Command, receiver: ReplyReceiver, *, is_probe: bool = False) -> None:
        """Send a command; `receiver` gets the reply or a `StoreUnavailable`. Raises `StoreUnavailable` while the
        breaker is open."""
        if self.breaker is not None and not is_probe:
            self.breaker.check()
        # The clock of the event loop, without the cost of finding the loop.
        call = PendingCall(command, receiver, time.monotonic() + self._timeout_seconds)
        self._route.queue_for(command.key, durable=command.durable).submit(call)

    async def subscribe(self, channel: str) -> Subscription:
        """Open a connection of its own that receives what is published on `channel`. The caller closes it. Raises
        `OSError` or `StoreUnavailable`."""
        return await self._route.subscribe(channel)

    def probe_succeeded(self) -> None:
        """Tell the breaker that the store replied to a probe as a healthy store does."""
        if self.breaker is not None:
            self.breaker.succeeded(probing=True)

    def drop_connections(self, key: bytes) -> None:
        """Close the connections to the server of a key. For use after a reply that belongs to another call."""
        self._route.drop_connections(key)

    def _tell_breaker(self, error: StoreUnavailable | None, began_at: float) -> None:
        if self.breaker is None:
            return
        if error is None:
            self.breaker.succeeded()
        else:
            self.breaker.failed(error, began_at=began_at)

    # Error replies

    def _error_reply(self, queue: CommandQueue, call: PendingCall, error: ReplyError) -> None:
        code = code_of(error)
        if code == "NOSCRIPT" and call.command.words[0] == "EVALSHA":
            # The text is sent with the call (EVAL), since the server could forget the script again between a SCRIPT
            # LOAD and the call. Of many calls that fail together one sends the text; a call that fails a second time
            # sends it itself.
            if call.attempts or not queue.resubmits_source_of(call.command.script):
                call.command = call.command.with_source()
            call.attempts += 1
            queue.resubmit(call)
        elif code in ("MOVED", "ASK") and call.attempts < _MAX_REDIRECTS:
            call.attempts += 1
            self._route.redirect(queue, call, str(error))
        elif code in _TEMPORARY or code in ("MOVED", "ASK"):
            if code == "READONLY":
                queue.retire()
            self._route.refresh_soon()
            self._resubmit_later(queue, call, unavailable_from(error))
        else:
            queue.fail([call], error)

    def _resubmit_later(self, queue: CommandQueue, call: PendingCall, fault: StoreUnavailable) -> None:
        call.fault = fault
        call.attempts += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(call.attempts - 1, 8), _LONGEST_PAUSE_SECONDS)
        loop = asyncio.get_running_loop()
        if loop.time() + pause < call.deadline:
            self._paused[call] = loop.call_later(pause, self._resubmit, queue, call)
        else:
            queue.fail([call], fault)

    def _resubmit(self, queue: CommandQueue, call: PendingCall) -> None:
        self._paused.pop(call, None)
        if call.receiver.done():
            return
        call.asking = False
        command = call.command
        # A command without a key was for that very server.
        target = self._route.queue_for(command.key, durable=command.durable) if command.key else queue
        target.resubmit(call)

    # Questions about the servers

    async def keys_on_primaries(self, key: bytes, current: Sequence[bytes]) -> list[bytes]:
        """`key`, and in a Cluster one more key for every other primary, which begins with `key` and lies there. A key
        of `current` is kept for as long as it lies on such a primary. Raises `StoreUnavailable`."""
        return await self._route.keys_on_primaries(key, current)

    async def _call_primaries(self, *words: Any) -> list[Any]:
        loop = asyncio.get_running_loop()
        if self.breaker is not None:
            self.breaker.check()
        command = server_command(*words)
        deadline = loop.time() + self._timeout_seconds
        replies: list[asyncio.Future[Any]] = []
        for queue in await self._route.primaries():
            replies.append(loop.create_future())
            queue.submit(PendingCall(command, replies[-1], deadline))
        return list(await asyncio.gather(*replies))

    async def time(self) -> float:
        """The store's clock, in seconds since 1970; of several primaries', the one that is farthest from ours. Raises
        `StoreUnavailable`."""
        replies = await self._call_primaries("TIME")
        try:
            # A reply of two bytes would be two numbers too.
            times = [int(seconds) + int(micros) / 1e6 for seconds, micros in map(_array, replies)]
        except (ValueError, TypeError, OverflowError):
            raise unexpected_reply() from None
        now = time.time()
        return max(times, key=lambda each: abs(each - now))

    async def connected_replicas(self) -> int | None:
        """The number of replicas of the primary that has fewest; None where the store does not permit the question.
        Raises `StoreUnavailable`."""
        try:
            roles = await self._call_primaries("ROLE")
        except StoreUnavailable as error:
            if error.kind in {"refused", "denied"}:
                return None
            raise
        found = (role[2] for role in roles if isinstance(role, list) and role[:1] == [b"master"] and len(role) > 2)
        return min((len(replicas) for replicas in found if isinstance(replicas, list)), default=0)

    async def configuration(self, name: str) -> str | None:
        """One parameter of the primaries, its different values joined by commas; None where the store does not permit
        the question, as managed stores do. Raises `StoreUnavailable`."""
        try:
            replies = await self._call_primaries("CONFIG", "GET", name)
        except StoreUnavailable as error:
            if error.kind in {"refused", "denied"}:
                return None
            raise
        pairs = (pair for pair in replies if isinstance(pair, list) and len(pair) == 2)
        values = {value.decode(errors="replace") for _, value in pairs if isinstance(value, bytes)}
        return ", ".join(sorted(values)) if values else None

    async def aclose(self) -> None:
        """Close all connections. Calls that still wait fail with `StoreUnavailable`."""
        for call, timer in self._paused.items():
            timer.cancel()
            call.fail(ConnectionError())
        self._paused.clear()
        await self._route.aclose()


def _array(reply: Any) -> list[Any]:
    if not isinstance(reply, list):
        raise TypeError("no array")
    return reply
