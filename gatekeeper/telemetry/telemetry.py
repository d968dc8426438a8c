"""The beginning and the end of each request, counted in the metrics and written to the access log.

Neither delays a response: lines are written together at the end of a turn of the event loop, requests are counted
together, and the collectors get their numbers when they are read, or a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from gatekeeper.errors import GatekeeperError, StoreUnavailable, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.metrics import Metrics
from gatekeeper.telemetry.request_record import RequestRecord

_log = logging.getLogger("gatekeeper")

# Several workers are read through files, which then lag by this much.
_SETTLE_SECONDS: Final = 0.1
_SECONDS_BETWEEN_WARNINGS: Final = 10.0


class Telemetry:
    """Where a request is seen to begin and to end."""

    def __init__(self, metrics: Metrics, access_log: AccessLog | None) -> None:
        self.metrics = metrics
        self._access_log = access_log
        # The loop that will do it; mounted under a test client, one that has ended may have left it undone.
        self._flushes: asyncio.AbstractEventLoop | None = None
        self._settles: asyncio.AbstractEventLoop | None = None
        self._refused_connections = 0
        self._next_warning_at = 0.0

    def began(self, record: RequestRecord) -> None:
        self.metrics.began(record)

    def connection_refused(self) -> None:
        """One over the limit. Whoever opens thousands does not fill the log."""
        self.metrics.connections_refused.inc()
        self._refused_connections += 1
        if (now := time.monotonic()) >= self._next_warning_at:
            _log.warning("too many connections", extra={"refused": self._refused_connections})
            self._refused_connections = 0
            self._next_warning_at = now + _SECONDS_BETWEEN_WARNINGS

    def left(self, record: RequestRecord) -> None:
        """It was begun, and goes on as another."""
        self.metrics.left(record)

    def failed(self, error: GatekeeperError) -> None:
        """What could not be found out: a verdict, or whose password it is."""
        if isinstance(error, StoreUnavailable):
            self.metrics.store_failed(error.kind)
        elif isinstance(error, UpstreamUnavailable | UpstreamTimeout):
            self.metrics.upstream_failed(error.kind)
            _log.warning("who checks passwords has failed: %s", error)

    def finished(self, record: RequestRecord) -> None:
        record.seconds = time.perf_counter() - record.started_at
        self.metrics.finished(record)
        if self._access_log is not None:
            self._access_log.add(record)
        if self._flushes is None or self._flushes.is_closed():
            self._flushes = asyncio.get_running_loop()
            self._flushes.call_soon(self._flush)

    def close(self) -> None:
        """Writes and counts what is left."""
        if self._access_log is not None:
            self._access_log.flush()
        self._settle()

    def _flush(self) -> None:
        self._flushes = None
        if self._access_log is not None:
            self._access_log.flush()
        if self._settles is None or self._settles.is_closed():
            self._settles = asyncio.get_running_loop()
            self._settles.call_later(_SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._settles = None
        self.metrics.settle()
