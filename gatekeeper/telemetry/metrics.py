"""What operators see: the Prometheus metrics and the access line.

One `Exchange` follows a request and is filled on its way; when the request is over it is counted and written once. No
user, session, address or raw path is ever a label.

Neither is done while anybody waits: lines are written together at the end of a turn of the event loop, requests are
counted together, and numbers go to the collectors when those are read, or a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from operator import attrgetter
from typing import IO, Any, Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gatekeeper import __version__
from gatekeeper.errors import (
    STORE_FAULTS,
    GatekeeperError,
    Reason,
    StoreUnavailable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gatekeeper.sessions.events import ACTORS, Actor, Event

_log = logging.getLogger("gatekeeper")
Mode = Literal["sidecar", "middleware"]
Decision = Literal["allow", "deny", "bypass", "error"]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UPSTREAM_ERRORS: Final = ("connect", "timeout", "reset", "protocol")
_PATH_CHARACTERS: Final = 2048
# So many are counted together, which takes a fraction of the time.
_MOST_UNCOUNTED: Final = 64
# Several workers are read through files, which then lag by this much.
_SETTLE_SECONDS: Final = 0.1
_SECONDS_BETWEEN_WARNINGS: Final = 10.0


class Exchange(msgspec.Struct, kw_only=True):
    """One request, as it will be counted and logged. `route` is a template, or `upstream` for what is forwarded;
    `seconds` is for how long it lasted, once it is over."""

    method: str
    path: str
    request_id: str
    client_ip: str
    started_at: float
    websocket: bool = False
    route: str = "upstream"
    decision: Decision = "error"
    reason: str = "none"
    user_id: str | None = None
    session_id: int | None = None
    status: int = 0
    bytes_out: int = 0
    decided_seconds: float | None = None
    upstream_seconds: float | None = None
    seconds: float = 0.0


# What a request is counted by.
_LABELS: Final = attrgetter("decision", "reason", "route", "method", "status")
_IS_WEBSOCKET: Final = attrgetter("websocket")
_DECIDED: Final = attrgetter("decided_seconds")
_LASTED: Final = attrgetter("seconds")
_WAITED: Final = attrgetter("upstream_seconds")


class Durations(Histogram):
    """A histogram of seconds that takes many at once."""

    def observe_all(self, amounts: Iterable[float | None]) -> None:
        """Those that are known."""
        known = sorted(amount for amount in amounts if amount is not None)
        below = 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            if (up_to := bisect_right(known, bound)) > below:
                bucket.inc(up_to - below)
                below = up_to
        self._sum.inc(sum(known))


class _Settling(Collector):
    """Collects nothing itself: the first of a registry, it sees to it that the others are up to date."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Metric]:
        self._settle()
        return ()

    def describe(self) -> Iterable[Metric]:
        return ()


class Metrics:
    """The collectors, in a registry of their own. Implements `sessions.events.Events`."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self.registry = CollectorRegistry()
        self.registry.register(_Settling(self.settle))
        self._open = {True: 0, False: 0}
        self._over: list[Exchange] = []
        self._tally: Tally[tuple[str, str, str, str, int]] = Tally()
        self._decided: list[float | None] = []
        self._lasted: list[float | None] = []
        self._waited: list[float | None] = []
        self._make()
        self._fill()

    def _make(self) -> None:
        of: Any = {"namespace": "gatekeeper", "registry": self.registry}
        self.decisions = Counter("decisions", "Verdicts on requests.", ("result", "reason", "mode"), **of)
        self.decision_seconds = Durations("decision_duration_seconds", "Time to a verdict.", buckets=_BUCKETS, **of)
        self.requests = Counter("http_requests", "Requests answered.", ("route", "method", "code"), **of)
        self.request_seconds = Durations(
            "http_request_duration_seconds", "Time until a request was over.", buckets=_BUCKETS, **of
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests under way.", multiprocess_mode="livesum", **of)
        self.websockets = Gauge("websockets_open", "Open WebSockets.", multiprocess_mode="livesum", **of)
        self.upstream_seconds = Durations(
            "upstream_request_duration_seconds", "Time until the backend's answer began.", buckets=_BUCKETS, **of
        )
        self.upstream_errors = Counter("upstream_errors", "Faults of the backend.", ("kind",), **of)
        self.connections_refused = Counter("connections_refused", "Client connections over the limit.", **of)
        self.session_events = Counter("session_events", "What happened to sessions.", ("event", "actor"), **of)
        self.store_up = Gauge("store_up", "Whether the session store answers.", multiprocess_mode="livemin", **of)
        self.store_errors = Counter("store_errors", "Faults of the session store.", ("kind",), **of)
        self.degraded = Counter("degraded_requests", "Requests passed while the store was away.", **of)
        self.jwks_keys = Gauge("jwks_keys", "Keys in the current key set.", multiprocess_mode="livemax", **of)
        self.build_info = Gauge("build_info", "The running version.", ("version",), multiprocess_mode="max", **of)

    def _fill(self) -> None:
        """Every label is there from the start: a rate over a counter that appears late misses its first step."""
        for result, reason in _DECISIONS:
            self.decisions.labels(result, reason, self.mode)
        for event in Event:
            for actor in ACTORS:
                self.session_events.labels(event.value, actor)
        for kind in _UPSTREAM_ERRORS:
            self.upstream_errors.labels(kind)
        for kind in STORE_FAULTS:
            self.store_errors.labels(kind)
        self.build_info.labels(__version__).set(1)

    def count(self, event: Event, actor: Actor, number: int = 1) -> None:
        self.session_events.labels(event.value, actor).inc(number)

    def store_is_up(self, up: bool) -> None:
        self.store_up.set(int(up))

    def store_failed(self, kind: str) -> None:
        self.store_errors.labels(kind).inc()

    def passed_degraded(self) -> None:
        self.degraded.inc()

    def upstream_failed(self, kind: str) -> None:
        self.upstream_errors.labels(kind).inc()

    def began(self, exchange: Exchange) -> None:
        self._open[exchange.websocket] += 1

    def left(self, exchange: Exchange) -> None:
        self._open[exchange.websocket] -= 1

    def finished(self, exchange: Exchange) -> None:
        self._over.append(exchange)
        if len(self._over) >= _MOST_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        over, self._over = self._over, []
        self._tally.update(map(_LABELS, over))
        self._decided.extend(map(_DECIDED, over))
        self._lasted.extend(map(_LASTED, over))
        self._waited.extend(map(_WAITED, over))
        websockets = sum(map(_IS_WEBSOCKET, over))
        self._open[True] -= websockets
        self._open[False] -= len(over) - websockets

    def settle(self) -> None:
        """Brings the collectors up to date with the requests that have begun and ended."""
        self._count()
        for (decision, reason, route, method, status), number in self._tally.items():
            self.decisions.labels(decision, reason, self.mode).inc(number)
            self.requests.labels(route, method if method in METHODS else "other", status).inc(number)
        self._tally.clear()
        self.websockets.set(self._open[True])
        self.in_flight.set(self._open[False])
        for histogram, amounts in (
            (self.decision_seconds, self._decided),
            (self.request_seconds, self._lasted),
            (self.upstream_seconds, self._waited),
        ):
            histogram.observe_all(amounts)
            amounts.clear()


def _decisions() -> list[tuple[str, str]]:
    return [
        ("allow", "none"),
        ("bypass", "none"),
        *(("error" if reason.status >= 500 else "deny", reason.code) for reason in Reason),
    ]


_DECISIONS: Final = _decisions()


class _Line(msgspec.Struct):
    """The access line (rule 8.2), fields in their order."""

    ts: str
    level: str
    event: str
    request_id: str
    client_ip: str
    method: str
    route: str
    path: str
    status: int
    duration_ms: float
    upstream_ms: float | None
    decision: str
    reason: str
    user_id: str | None
    session_id: int | None
    bytes_out: int


class AccessLog:
    """One line a request: JSON, or text for a terminal."""

    def __init__(self, stream: IO[bytes] | None = None, *, text: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._text = text
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._over: list[Exchange] = []
        self._millisecond = 0
        self._second = 0
        self._second_text = self._now_text = ""

    def add(self, exchange: Exchange) -> None:
        """Of a request that is over; its line waits for `flush`."""
        self._over.append(exchange)

    def flush(self) -> None:
        """Writes what was added."""
        over, self._over = self._over, []
        if not over:
            return
        if self._text:
            lines = b"".join(map(_text_line, over))
        else:
            # One instant for all that is written together.
            self._stamp()
            lines = self._encode_lines([self._line(exchange) for exchange in over])
        try:
            self._stream.write(lines)
            self._stream.flush()
        except (OSError, ValueError):
            # A log that cannot be written is no reason to fail a request that was answered.
            return

    def _line(self, exchange: Exchange) -> _Line:
        upstream = exchange.upstream_seconds
        return _Line(
            self._now_text,
            "error" if exchange.status >= 500 else "info",
            "request",
            exchange.request_id,
            exchange.client_ip,
            exchange.method[:32],
            exchange.route,
            exchange.path[:_PATH_CHARACTERS],
            exchange.status,
            int(exchange.seconds * 1e6) / 1000,
            None if upstream is None else int(upstream * 1e6) / 1000,
            exchange.decision,
            exchange.reason,
            exchange.user_id,
            exchange.session_id,
            exchange.bytes_out,
        )

    def _stamp(self) -> None:
        """UTC with milliseconds."""
        millisecond = int(time.time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._now_text = f"{self._second_text}.{rest:03d}Z"


def _text_line(exchange: Exchange) -> bytes:
    who = "-" if exchange.user_id is None else exchange.user_id
    why = exchange.decision if exchange.reason == "none" else f"{exchange.decision} {exchange.reason}"
    path = exchange.path[:_PATH_CHARACTERS]
    text = f"{exchange.status} {exchange.method:6} {path}  {why}  user={who}  {exchange.seconds * 1000:.1f} ms"
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace") + b"\n"


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

    def began(self, exchange: Exchange) -> None:
        self.metrics.began(exchange)

    def connection_refused(self) -> None:
        """One over the limit. Whoever opens thousands does not fill the log."""
        self.metrics.connections_refused.inc()
        self._refused_connections += 1
        if (now := time.monotonic()) >= self._next_warning_at:
            _log.warning("too many connections", extra={"refused": self._refused_connections})
            self._refused_connections = 0
            self._next_warning_at = now + _SECONDS_BETWEEN_WARNINGS

    def left(self, exchange: Exchange) -> None:
        """It was begun, and goes on as another."""
        self.metrics.left(exchange)

    def failed(self, error: GatekeeperError) -> None:
        """What could not be found out: a verdict, or whose password it is."""
        if isinstance(error, StoreUnavailable):
            self.metrics.store_failed(error.kind)
        elif isinstance(error, UpstreamUnavailable | UpstreamTimeout):
            self.metrics.upstream_failed(error.kind)
            _log.warning("who checks passwords has failed: %s", error)

    def finished(self, exchange: Exchange) -> None:
        exchange.seconds = time.perf_counter() - exchange.started_at
        self.metrics.finished(exchange)
        if self._access_log is not None:
            self._access_log.add(exchange)
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
