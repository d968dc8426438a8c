"""What operators see: the Prometheus metrics and the access line.

One `Exchange` follows a request and is filled on its way; when the request is over it is counted and written once. No
user, session, address or raw path is ever a label.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gatekeeper import __version__
from gatekeeper.errors import GatekeeperError, Reason, StoreUnavailable, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.sessions.events import ACTORS, Actor, Event

_log = logging.getLogger("gatekeeper")
Mode = Literal["sidecar", "middleware"]
Decision = Literal["allow", "deny", "bypass", "error"]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UPSTREAM_ERRORS: Final = ("connect", "timeout", "reset", "protocol")
_STORE_ERRORS: Final = ("timeout", "connection", "refused", "protocol")
_PATH_CHARACTERS: Final = 2048


class Exchange(msgspec.Struct, kw_only=True):
    """One request, as it will be counted and logged. `route` is a template, or `upstream` for what is forwarded."""

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


class Metrics:
    """The collectors, in a registry of their own. Implements `sessions.events.Events`."""

    def __init__(self, mode: Mode, registry: CollectorRegistry | None = None) -> None:
        self.mode: Mode = mode
        self.registry = registry or CollectorRegistry()
        self._make()
        self._fill()

    def _make(self) -> None:
        of: Any = {"namespace": "gatekeeper", "registry": self.registry}
        self.decisions = Counter("decisions", "Verdicts on requests.", ("result", "reason", "mode"), **of)
        self.decision_seconds = Histogram("decision_duration_seconds", "Time to a verdict.", buckets=_BUCKETS, **of)
        self.requests = Counter("http_requests", "Requests answered.", ("route", "method", "code"), **of)
        self.request_seconds = Histogram(
            "http_request_duration_seconds", "Time until a request was over.", buckets=_BUCKETS, **of
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests under way.", multiprocess_mode="livesum", **of)
        self.websockets = Gauge("websockets_open", "Open WebSockets.", multiprocess_mode="livesum", **of)
        self.upstream_seconds = Histogram(
            "upstream_request_duration_seconds", "Time until the backend's answer began.", buckets=_BUCKETS, **of
        )
        self.upstream_errors = Counter("upstream_errors", "Faults of the backend.", ("kind",), **of)
        self.session_events = Counter("session_events", "What happened to sessions.", ("event", "actor"), **of)
        self.store_up = Gauge("store_up", "Whether the session store answered last.", multiprocess_mode="livemin", **of)
        self.store_errors = Counter("store_errors", "Faults of the session store.", ("kind",), **of)
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
        for kind in _STORE_ERRORS:
            self.store_errors.labels(kind)
        self.build_info.labels(__version__).set(1)

    def count(self, event: Event, actor: Actor, number: int = 1) -> None:
        self.session_events.labels(event.value, actor).inc(number)

    def store_answered(self) -> None:
        self.store_up.set(1)

    def store_failed(self, kind: str) -> None:
        self.store_up.set(0)
        self.store_errors.labels(kind).inc()

    def upstream_failed(self, kind: str) -> None:
        self.upstream_errors.labels(kind).inc()

    def began(self, exchange: Exchange) -> None:
        (self.websockets if exchange.websocket else self.in_flight).inc()

    def finished(self, exchange: Exchange, seconds: float) -> None:
        (self.websockets if exchange.websocket else self.in_flight).dec()
        self.decisions.labels(exchange.decision, exchange.reason, self.mode).inc()
        if exchange.decided_seconds is not None:
            self.decision_seconds.observe(exchange.decided_seconds)
        method = exchange.method if exchange.method in METHODS else "other"
        self.requests.labels(exchange.route, method, exchange.status).inc()
        self.request_seconds.observe(seconds)
        if exchange.upstream_seconds is not None:
            self.upstream_seconds.observe(exchange.upstream_seconds)


def _decisions() -> list[tuple[str, str]]:
    return [
        ("allow", "none"),
        ("bypass", "none"),
        *(("error" if reason.status >= 500 else "deny", reason.code) for reason in Reason),
    ]


_DECISIONS: Final = _decisions()


class AccessLog:
    """Writes one line a request: JSON, or text for a terminal."""

    def __init__(self, stream: IO[bytes] | None = None, *, text: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._text = text
        self._encode = msgspec.json.Encoder().encode

    def write(self, exchange: Exchange, seconds: float) -> None:
        line = self._line(exchange, seconds) if self._text else self._encode(self._record(exchange, seconds))
        try:
            self._stream.write(line + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A log that cannot be written is no reason to fail a request that was answered.
            return

    @staticmethod
    def _record(exchange: Exchange, seconds: float) -> dict[str, Any]:
        upstream = exchange.upstream_seconds
        return {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": "error" if exchange.status >= 500 else "info",
            "event": "request",
            "request_id": exchange.request_id,
            "client_ip": exchange.client_ip,
            "method": exchange.method[:32],
            "route": exchange.route,
            "path": exchange.path[:_PATH_CHARACTERS],
            "status": exchange.status,
            "duration_ms": round(seconds * 1000, 3),
            "upstream_ms": None if upstream is None else round(upstream * 1000, 3),
            "decision": exchange.decision,
            "reason": exchange.reason,
            "user_id": exchange.user_id,
            "session_id": exchange.session_id,
            "bytes_out": exchange.bytes_out,
        }

    @staticmethod
    def _line(exchange: Exchange, seconds: float) -> bytes:
        who = "-" if exchange.user_id is None else exchange.user_id
        why = exchange.decision if exchange.reason == "none" else f"{exchange.decision} {exchange.reason}"
        path = exchange.path[:_PATH_CHARACTERS]
        text = f"{exchange.status} {exchange.method:6} {path}  {why}  user={who}  {seconds * 1000:.1f} ms"
        return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace")


class Telemetry:
    """Where a request is seen to begin and to end."""

    def __init__(self, metrics: Metrics, access_log: AccessLog | None) -> None:
        self.metrics = metrics
        self._access_log = access_log

    def began(self, exchange: Exchange) -> None:
        self.metrics.began(exchange)

    def failed(self, error: GatekeeperError) -> None:
        """What could not be found out: a verdict, or whose password it is."""
        if isinstance(error, StoreUnavailable):
            self.metrics.store_failed(error.kind)
        elif isinstance(error, UpstreamUnavailable | UpstreamTimeout):
            self.metrics.upstream_failed(error.kind)
            _log.warning("who checks passwords has failed: %s", error)

    def finished(self, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started_at
        self.metrics.finished(exchange, seconds)
        if self._access_log is not None:
            self._access_log.write(exchange, seconds)
