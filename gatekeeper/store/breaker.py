"""A circuit breaker for the store: while the store is known to be down, a call fails within microseconds.

Closed, every call goes to the store. A fault that concerns the whole store opens the breaker: at once where the store
reports it itself, else after three failed calls in a row. Open, calls fail without being made, and one probe at a time
is sent until one succeeds, which closes the breaker. Each transition is one line in the log.
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

# Reported by the store about itself, so they hold for every call.
STORE_WIDE_FAULTS: Final = frozenset(
    {
        *("loading", "read_only", "out_of_memory", "not_persisting", "no_replicas", "no_primary", "busy"),
        *("unauthenticated", "schema"),
    }
)
# They concern one connection or one call: several in a row open the breaker.
COUNTED_FAULTS: Final = frozenset({"timeout", "connection", "too_many_clients", "protocol"})
_MAX_IN_A_ROW: Final = 3

_FIRST_PROBE_SECONDS: Final = 0.05
_LONGEST_PROBE_SECONDS: Final = 0.5
# A breaker that opens again sooner keeps its longer intervals: a store that flaps must not fill the log.
_CALM_SECONDS: Final = 10.0


class Breaker:
    """Asked before every call (`check`), and informed of its outcome (`succeeded`, `failed`). For one event loop.

    `probe` calls the store in a way that only succeeds if the store is in working order; it raises `StoreUnavailable`
    otherwise, and reports its outcome here. With `opens=False` failures are only counted: in a Cluster a fault of one
    node says nothing about the others, except for the format of what they hold. With `probe_first` no call is made
    before the first probe has succeeded. `clock` is the one of the event loop.
    """

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
        self._clock = clock or time.monotonic
        self._fault: StoreUnavailable | None = None
        # The reason why calls wait for the first probe; None once it has succeeded.
        self._unprobed = StoreUnavailable("session store not probed yet", kind="open") if probe_first else None
        self._in_a_row = 0
        # When the first of the failed calls in a row was made.
        self._row_began_at = 0.0
        self._last_failed_at: float | None = None
        self._failing_since: float | None = None
        self._closed_at: float | None = None
        self._pause = _FIRST_PROBE_SECONDS
        self._prober: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[bool], None]] = []
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Breaker [{'closed' if self._fault is None else f'open: {self._fault.kind}'}]>"

    def add_listener(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` at every transition and at the first success, with True if the store works."""
        self._listeners.append(listener)

    @property
    def fault(self) -> StoreUnavailable | None:
        """The last fault while the breaker is open; None while it is closed."""
        return self._fault

    @property
    def failing_seconds(self) -> float | None:
        """The time since the first failed call; None while the store works. Failures among successes count as one
        outage until ten seconds pass without a failure."""
        return None if self._failing_since is None else self._clock() - self._failing_since

    def check(self) -> None:
        """Raise `StoreUnavailable` if the call is not to be made."""
        if (fault := self._fault or self._unprobed) is not None:
            raise StoreUnavailable(str(fault), kind="open")

    def succeeded(self, *, probing: bool = False) -> None:
        """Report a call, or a probe, to which the store replied."""
        if probing:
            self._unprobed = None
        if self._fault is not None:
            # A call that was in flight when the breaker opened says nothing about now.
            if probing:
                self._close()
            return
        self._in_a_row = 0
        if self._failing_since is not None and self._is_calm_since(self._last_failed_at):
            self._failing_since = None
        if self._closed_at is None:
            self._closed_at = self._clock()
            self._notify(True)

    def failed(self, error: StoreUnavailable, *, began_at: float) -> None:
        """Report a call that failed; `began_at` is when it was made, on the clock of the event loop."""
        if self._stopped:
            return
        if self._unprobed is not None:
            self._unprobed = error
        if error.kind not in STORE_WIDE_FAULTS and error.kind not in COUNTED_FAULTS:
            # The store works: it only refused this call.
            self._in_a_row = 0
            return
        # A connection that breaks takes a whole batch of calls with it: that is one failure.
        counts = self._last_failed_at is None or began_at > self._last_failed_at or error.kind == "timeout"
        self._last_failed_at = self._clock()
        if self._failing_since is None:
            self._failing_since = began_at
        if self._fault is not None:
            self._fault = error
            return
        if self._in_a_row == 0:
            self._row_began_at = began_at
        self._in_a_row += counts
        concerns_all = error.kind in STORE_WIDE_FAULTS or self._in_a_row >= _MAX_IN_A_ROW
        if error.kind == "schema" or (self._opens and concerns_all):
            self._open(error)

    def _open(self, error: StoreUnavailable) -> None:
        self._fault = error
        if self._is_calm_since(self._closed_at):
            self._pause = _FIRST_PROBE_SECONDS
        _log.warning("session store is not called until a probe succeeds: %s", error)
        self._notify(False)
        self._prober = asyncio.get_running_loop().create_task(self._probe_until_closed())

    def _close(self) -> None:
        self._fault, self._failing_since, self._in_a_row = None, None, 0
        self._last_failed_at, self._closed_at = None, self._clock()
        # Not since `_failing_since`: failures from before the store last replied are no part of this outage.
        seconds = self._closed_at - self._row_began_at
        _log.info("session store works again: a probe succeeded after %.1f s", seconds)
        self._notify(True)

    async def _probe_until_closed(self) -> None:
        while self._fault is not None:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 1.5, _LONGEST_PROBE_SECONDS)
            with suppress(StoreUnavailable):
                await self._probe()

    def _is_calm_since(self, instant: float | None) -> bool:
        return instant is None or self._clock() - instant > _CALM_SECONDS

    def _notify(self, works: bool) -> None:
        for listener in self._listeners:
            listener(works)

    async def aclose(self) -> None:
        """Stop probing, and ignore what fails from now on."""
        self._stopped = True
        if self._prober is not None:
            self._prober.cancel()
            with suppress(asyncio.CancelledError):
                await self._prober
            self._prober = None
