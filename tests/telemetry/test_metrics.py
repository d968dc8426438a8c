"""The counts of requests, compared with collectors of prometheus_client that observe each request by itself."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.metrics import Durations, Metrics
from gatekeeper.telemetry.request_record import RequestRecord

BUCKETS = (0.001, 0.01, 0.1, 1.0)
# Those of a bucket's own bound belong to it.
SECONDS = st.one_of(st.floats(0, 5), st.sampled_from([*BUCKETS, 0.0]))


def record(*, method: str = "GET", websocket: bool = False, seconds: float = 0.25, status: int = 200) -> RequestRecord:
    return RequestRecord(
        method=method,
        path="/a",
        request_id="1",
        client_ip="192.0.2.1",
        started_at=0.0,
        websocket=websocket,
        decision="allow",
        status=status,
        seconds=seconds,
    )


@given(st.lists(SECONDS | st.none(), max_size=30))
def test_many_durations_at_once_count_as_one_after_another(amounts: list[float | None]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Durations("d", "d", buckets=BUCKETS, registry=ours).observe_all(amounts)
    one_by_one = Histogram("d", "d", buckets=BUCKETS, registry=theirs)
    for amount in sorted(amount for amount in amounts if amount is not None):
        one_by_one.observe(amount)

    for name in ("d_bucket", "d_count", "d_sum"):
        for bound in [*map(str, BUCKETS), "+Inf"] if name == "d_bucket" else [None]:
            labels = {"le": bound} if bound is not None else {}
            # `sum` rounds once from Python 3.12 on, and not after each number.
            assert ours.get_sample_value(name, labels) == pytest.approx(
                theirs.get_sample_value(name, labels), rel=1e-12
            )


def test_numbers_are_those_of_the_moment_in_which_they_are_read() -> None:
    metrics = Metrics("sidecar")

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"gatekeeper_{name}", labels)

    under_way = [record(), record(method="BREW", status=418), record(websocket=True)]
    for each in under_way:
        metrics.began(each)
    generate_latest(metrics.registry)
    assert (value("http_requests_in_flight"), value("websockets_open")) == (2, 1)

    for each in under_way:
        metrics.finished(each)
    metrics.began(record())
    metrics.began(moved := record())
    metrics.left(moved)
    generate_latest(metrics.registry)
    assert (value("http_requests_in_flight"), value("websockets_open")) == (1, 0)
    assert value("http_requests_total", route="upstream", method="GET", code="200") == 2
    assert value("http_requests_total", route="upstream", method="other", code="418") == 1
    assert value("decisions_total", result="allow", reason="none", mode="sidecar") == 3
    assert value("http_request_duration_seconds_count") == 3
    assert value("http_request_duration_seconds_sum") == 0.75
    assert value("upstream_request_duration_seconds_count") == 0

    for _ in range(1000):
        metrics.began(record())
        metrics.finished(record())
    assert len(metrics._finished) < 100
    generate_latest(metrics.registry)
    assert value("http_requests_in_flight") == 1
    assert value("http_request_duration_seconds_count") == 1003


def test_lines_wait_for_their_write_and_come_once() -> None:
    written = io.BytesIO()
    log = AccessLog(written)
    for status in (200, 500):
        log.add(record(status=status))
    assert not written.getvalue()

    log.flush()
    log.flush()

    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["status"], line["level"], line["duration_ms"]) for line in lines] == [
        (200, "info", 250.0),
        (500, "error", 250.0),
    ]
    assert written.getvalue().endswith(b"\n")
