"""The Prometheus metrics. A user, session, address or raw path is never a label."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gatekeeper import __version__
from gatekeeper.errors import (
    STORE_FAULTS,
    Reason,
)
from gatekeeper.http.methods import SUPPORTED_METHODS
from gatekeeper.sessions.events import ACTOR_KINDS, ActorKind, Event
from gatekeeper.store.epoch import LOSSES
from gatekeeper.telemetry.line_writer import dropped_lines
from gatekeeper.telemetry.request_record import RequestRecord

Mode = Literal["sidecar", "middleware"]

METHODS: Final = frozenset(SUPPORTED_METHODS)
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UPSTREAM_ERRORS: Final = ("connect", "timeout", "reset", "protocol")
# Requests are counted in batches of this size, which takes a fraction of the time of counting each by itself.
_BATCH_SIZE: Final = 64

# The fields of a `RequestRecord` that requests are counted by, and those that are observed.
_LABELS: Final = attrgetter("decision", "reason", "route", "method", "status")
_IS_WEBSOCKET: Final = attrgetter("websocket")
_DECIDED: Final = attrgetter("decided_seconds")
_LASTED: Final = attrgetter("seconds")
_WAITED: Final = attrgetter("upstream_seconds")


class Durations(Histogram):
    """A histogram of seconds that takes many observations in one call."""

    def observe_all(self, amounts: Iterable[float | None]) -> None:
        """Observe every amount that is not None."""
        known = sorted(amount for amount in amounts if amount is not None)
        below = 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            if (up_to := bisect_right(known, bound)) > below:
                bucket.inc(up_to - below)
                below = up_to
        self._sum.inc(sum(known))


class _SettleOnCollect(Collector):
    """Has no metrics. As the first collector of a registry it brings the others up to date before each scrape."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Metric]:
        self._settle()
        return ()

    def describe(self) -> Iterable[Metric]:
        return ()


class Metrics:
    """The collectors, in a registry that only they use. Implements `sessions.events.Events`."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self.registry = CollectorRegistry()
        self.registry.register(_SettleOnCollect(self.settle))
        self._open = {True: 0, False: 0}
        self._dropped_lines = 0
        self._finished: list[RequestRecord] = []
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
        self.requests = Counter("http_requests", "Finished requests.", ("route", "method", "code"), **of)
        self.request_seconds = Durations(
            "http_request_duration_seconds", "Time until a request was finished.", buckets=_BUCKETS, **of
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests in flight.", multiprocess_mode="livesum", **of)
        self.websockets = Gauge("websockets_open", "Open WebSockets.", multiprocess_mode="livesum", **of)
        self.upstream_seconds = Durations(
            "upstream_request_duration_seconds", "Time until the backend's response began.", buckets=_BUCKETS, **of
        )
        self.upstream_errors = Counter("upstream_errors", "Faults of the backend.", ("kind",), **of)
        self.connections_refused = Counter("connections_refused", "Client connections over the limit.", **of)
        self.session_events = Counter("session_events", "What happened to sessions.", ("event", "actor"), **of)
        self.store_up = Gauge("store_up", "1 if the session store answers, else 0.", multiprocess_mode="livemin", **of)
        self.store_errors = Counter("store_errors", "Faults of the session store.", ("kind",), **of)
        self.data_losses = Counter(
            "store_data_losses", "Losses of data in the session store, by how they were noticed.", ("kind",), **of
        )
        self.revocations_forgotten = Counter(
            "recent_revocations_dropped",
            "Revocations that a failover may lose, because there were too many to remember for 30 seconds.",
            **of,
        )
        self.degraded = Counter("degraded_requests", "Requests passed while the store was away.", **of)
        self.jwks_keys = Gauge("jwks_keys", "Keys in the current key set.", multiprocess_mode="livemax", **of)
        self.log_lines_dropped = Counter("log_lines_dropped", "Lines of the log that were not written.", **of)
        self.build_info = Gauge("build_info", "The running version.", ("version",), multiprocess_mode="max", **of)

    def _fill(self) -> None:
        """Create every label set at the start: `rate()` misses the first step of a counter that appears later."""
        for result, reason in _DECISIONS:
            self.decisions.labels(result, reason, self.mode)
        for event in Event:
            for actor in ACTOR_KINDS:
                self.session_events.labels(event.value, actor)
        for kind in _UPSTREAM_ERRORS:
            self.upstream_errors.labels(kind)
        for kind in STORE_FAULTS:
            self.store_errors.labels(kind)
        for kind in (*LOSSES, "failover"):
            self.data_losses.labels(kind)
        self.build_info.labels(__version__).set(1)

    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None:
        self.session_events.labels(event.value, actor).inc(number)

    def store_is_up(self, up: bool) -> None:
        self.store_up.set(int(up))

    def store_failed(self, kind: str) -> None:
        self.store_errors.labels(kind).inc()

    def store_lost_data(self, kind: str) -> None:
        self.data_losses.labels(kind).inc()

    def revocation_forgotten(self) -> None:
        self.revocations_forgotten.inc()

    def passed_degraded(self) -> None:
        self.degraded.inc()

    def upstream_failed(self, kind: str) -> None:
        self.upstream_errors.labels(kind).inc()

    def began(self, record: RequestRecord) -> None:
        self._open[record.websocket] += 1

    def left(self, record: RequestRecord) -> None:
        self._open[record.websocket] -= 1

    def finished(self, record: RequestRecord) -> None:
        self._finished.append(record)
        if len(self._finished) >= _BATCH_SIZE:
            self._count()

    def _count(self) -> None:
        finished, self._finished = self._finished, []
        self._tally.update(map(_LABELS, finished))
        self._decided.extend(map(_DECIDED, finished))
        self._lasted.extend(map(_LASTED, finished))
        self._waited.extend(map(_WAITED, finished))
        websockets = sum(map(_IS_WEBSOCKET, finished))
        self._open[True] -= websockets
        self._open[False] -= len(finished) - websockets

    def settle(self) -> None:
        """Bring the collectors up to date with the requests that have begun and finished."""
        self._count()
        for (decision, reason, route, method, status), number in self._tally.items():
            self.decisions.labels(decision, reason, self.mode).inc(number)
            self.requests.labels(route, method if method in METHODS else "other", status).inc(number)
        self._tally.clear()
        if (dropped := dropped_lines()) > self._dropped_lines:
            self.log_lines_dropped.inc(dropped - self._dropped_lines)
            self._dropped_lines = dropped
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
