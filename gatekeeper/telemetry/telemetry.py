"""Counts each request in the metrics and writes it to the access log, without delaying its response.

Lines are written together at the end of an iteration of the event loop. Requests are counted in batches, and the
collectors are updated at a scrape, or 0.1 seconds later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from gatekeeper.errors import GatekeeperError, StoreUnavailable, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.metrics import Metrics
from gatekeeper.telemetry.repeated import RepeatedWarning
from gatekeeper.telemetry.request_record import RequestRecord

_log = logging.getLogger("gatekeeper")

# The metrics of several workers are read from files, which lag behind by this much.
_SETTLE_SECONDS: Final = 0.1
_SECONDS_BETWEEN_WARNINGS: Final = 10.0


def _warn_of_login_check(why: str, times: int) -> None:
    _log.warning("login check failed: %s", why, extra={"times": times})


def _warn_of_upstream(why: str, times: int) -> None:
    _log.warning("upstream failed: %s", why, extra={"times": times})


def _warn_of_protocol(name: str, times: int) -> None:
    why = "let the load balancer send it to HTTP ports only" if name == "TLS" else "switch it off in the load balancer"
    _log.warning("listener got the %s, and speaks only HTTP: %s", name, why, extra={"times": times})


class Telemetry:
    """Records requests from their beginning to their end, and failures of the services that they need."""

    def __init__(self, metrics: Metrics, access_log: AccessLog | None) -> None:
        self.metrics = metrics
        self._access_log = access_log
        # The loop on which a call is scheduled. It may be closed without having made the call: a test client runs each
        # request on a loop of its own.
        self._flush_loop: asyncio.AbstractEventLoop | None = None
        self._settle_loop: asyncio.AbstractEventLoop | None = None
        self._login_check_warning = RepeatedWarning(_warn_of_login_check)
        self._protocol_warning = RepeatedWarning(_warn_of_protocol)
        self._upstream_warning = RepeatedWarning(_warn_of_upstream)
        self._refused_connections = 0
        self._next_warning_at = 0.0

    def began(self, record: RequestRecord) -> None:
        self.metrics.began(record)

    def connection_refused(self) -> None:
        """Count a client connection over the limit. There is one warning every ten seconds, however many connections a
        client opens."""
        self.metrics.connections_refused.inc()
        self._refused_connections += 1
        if (now := time.monotonic()) >= self._next_warning_at:
            _log.warning("too many connections", extra={"refused": self._refused_connections})
            self._refused_connections = 0
            self._next_warning_at = now + _SECONDS_BETWEEN_WARNINGS

    def left(self, record: RequestRecord) -> None:
        """Take back `began`: the application serves the request, with a record of its own."""
        self.metrics.left(record)

    def failed(self, error: GatekeeperError) -> None:
        """Count a failure of the session store, or of the backend while it checked a password."""
        if isinstance(error, StoreUnavailable):
            self.metrics.store_failed(error.kind)
        elif isinstance(error, UpstreamUnavailable | UpstreamTimeout):
            self.metrics.upstream_failed(error.kind)
            self._login_check_warning(str(error))

    def protocol_refused(self, name: str) -> None:
        """Log that something in front speaks another protocol, which it does on each of its connections."""
        self._protocol_warning(name)

    def upstream_failed(self, error: UpstreamUnavailable | UpstreamTimeout) -> None:
        """Count a failure of the backend, and log why at most every ten seconds."""
        self.metrics.upstream_failed(error.kind)
        self._upstream_warning(str(error))

    def finished(self, record: RequestRecord) -> None:
        record.seconds = time.perf_counter() - record.started_at
        self.metrics.finished(record)
        if self._access_log is not None:
            self._access_log.add(record)
        if self._flush_loop is None or self._flush_loop.is_closed():
            self._flush_loop = asyncio.get_running_loop()
            self._flush_loop.call_soon(self._flush)

    def close(self) -> None:
        """Write and count the requests that are still pending."""
        if self._access_log is not None:
            self._access_log.flush()
        self._settle()

    def _flush(self) -> None:
        self._flush_loop = None
        if self._access_log is not None:
            self._access_log.flush()
        if self._settle_loop is None or self._settle_loop.is_closed():
            self._settle_loop = asyncio.get_running_loop()
            self._settle_loop.call_later(_SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._settle_loop = None
        self.metrics.settle()
