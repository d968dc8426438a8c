"""A circuit breaker for the store: what is known to be away is not asked, so that it costs microseconds a request.

Closed, every call goes to the store. A fault that speaks for the whole store opens it, at once where the store itself
says so, else after a few calls in a row. Open, calls fail without being made, and one probe at a time asks the store
until it answers: that closes it. Each of the two transitions is one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gatekeeper.errors import StoreUnavailable

_log = logging.getLogger("gatekeeper")

# Said by the store about itself, and true for every call.
STORE_WIDE_FAULTS: Final = frozenset(
    {
        *("loading", "read_only", "out_of_memory", "not_persisting", "no_replicas", "no_primary", "busy"),
        *("unauthenticated", "schema"),
    }
)
# Of one connection or one call: these count.
COUNTED_FAULTS: Final = frozenset({"timeout", "connection", "too_many_clients", "protocol"})
_MOST_IN_A_ROW: Final = 3

_FIRST_PROBE_SECONDS: Final = 0.05
_LAST_PROBE_SECONDS: Final = 0.5
# One that opens again sooner goes on with the longer intervals: a store that flaps must not fill the log.
_CALM_SECONDS: Final = 10.0


class Breaker:
    """Asked before a call (`check`) and told after it (`succeeded`, `failed`). `probe` asks the store something that
    only a store in full working order answers; it raises `StoreUnavailable`. One without `opens` keeps account of
    failures alone: of a Cluster, what one node answers says nothing about the others, but for the format of what it
    holds. With `probe_first`, no call is made before a probe was answered. Belongs to one event loop."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[object]],
        *,
        opens: bool = True,
        probe_first: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._probe = probe
        self._opens = opens
        # That of the calls.
        self._clock = clock or time.monotonic
        self._fault: StoreUnavailable | None = None
        # Why calls are not made yet.
        self._unmet = StoreUnavailable("the session store was not asked yet", kind="open") if probe_first else None
        self._in_a_row = 0
        self._last_failed_at: float | None = None
        self._failing_since: float | None = None
        self._closed_at: float | None = None
        self._pause = _FIRST_PROBE_SECONDS
        self._prober: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[bool], None]] = []
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Breaker [{'closed' if self._fault is None else f'open: {self._fault.kind}'}]>"

    def add_listener(self, heard: Callable[[bool], None]) -> None:
        """`heard` is told of every transition, and of the first answer: True for a store that answers."""
        self._listeners.append(heard)

    @property
    def fault(self) -> StoreUnavailable | None:
        """The last fault of a store that is not asked; None while calls are made."""
        return self._fault

    @property
    def failing_seconds(self) -> float | None:
        """For how long the store has been failing, counted from the first failed call; None while it answers. Failures
        beside answers are one fault until ten seconds pass without one."""
        return None if self._failing_since is None else self._clock() - self._failing_since

    def check(self) -> None:
        """Before a call. Raises `StoreUnavailable` where it is not to be made."""
        if (fault := self._fault or self._unmet) is not None:
            raise StoreUnavailable(str(fault), kind="open")

    def succeeded(self, *, probing: bool = False) -> None:
        """After a call that the store answered."""
        if probing:
            self._unmet = None
        if self._fault is not None:
            # What was under way when it opened says nothing about now.
            if probing:
                self._close()
            return
        self._in_a_row = 0
        if self._failing_since is not None and self._calm_since(self._last_failed_at):
            self._failing_since = None
        if self._closed_at is None:
            self._closed_at = self._clock()
            self._tell(True)

    def failed(self, error: StoreUnavailable, *, began_at: float) -> None:
        """After a call that began at `began_at`, by the clock of the event loop, and was not answered, or with an
        error."""
        if self._is_over:
            return
        if self._unmet is not None:
            self._unmet = error
        if error.kind not in STORE_WIDE_FAULTS and error.kind not in COUNTED_FAULTS:
            # The store is well: it was this call that it would not do.
            self._in_a_row = 0
            return
        counts = self._last_failed_at is None or began_at > self._last_failed_at or error.kind == "timeout"
        self._last_failed_at = self._clock()
        if self._failing_since is None:
            self._failing_since = began_at
        if self._fault is not None:
            self._fault = error
            return
        # One connection that breaks takes a whole batch with it: that is one failure.
        self._in_a_row += counts
        speaks_for_all = error.kind in STORE_WIDE_FAULTS or self._in_a_row >= _MOST_IN_A_ROW
        if error.kind == "schema" or (self._opens and speaks_for_all):
            self._open(error)

    def _open(self, error: StoreUnavailable) -> None:
        self._fault = error
        if self._calm_since(self._closed_at):
            self._pause = _FIRST_PROBE_SECONDS
        _log.warning("%s: it is not asked until it answers a probe", error)
        self._tell(False)
        self._prober = asyncio.get_running_loop().create_task(self._ask_until_it_answers())

    def _close(self) -> None:
        since = self._failing_since
        self._fault, self._failing_since, self._in_a_row = None, None, 0
        self._last_failed_at, self._closed_at = None, self._clock()
        _log.info("the session store answers again, after %.1f s", 0.0 if since is None else self._closed_at - since)
        self._tell(True)

    async def _ask_until_it_answers(self) -> None:
        while self._fault is not None:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 1.5, _LAST_PROBE_SECONDS)
            with suppress(StoreUnavailable):
                await self._probe()

    def _calm_since(self, instant: float | None) -> bool:
        return instant is None or self._clock() - instant > _CALM_SECONDS

    def _tell(self, answers: bool) -> None:
        for heard in self._listeners:
            heard(answers)

    async def aclose(self) -> None:
        """No more probes: what fails from now on is nobody's business."""
        self._is_over = True
        if self._prober is not None:
            self._prober.cancel()
            with suppress(asyncio.CancelledError):
                await self._prober
            self._prober = None
