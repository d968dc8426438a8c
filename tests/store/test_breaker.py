"""The circuit breaker: the faults that open it, the probes that close it, and its log lines (R2, R8, R18)."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gatekeeper.errors import STORE_FAULTS, StoreUnavailable
from gatekeeper.store.breaker import COUNTED_FAULTS, STORE_WIDE_FAULTS, Breaker
from gatekeeper.store.errors import kind_of_reply
from tests.waiting import until


class Clock:
    """A clock that moves on a little at every reading."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Store:
    """A store that is down until `up` is set, and counts its probes."""

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.up = False
        self.probes = self.at_once = self.most_at_once = 0

    async def probe(self) -> None:
        self.probes += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        assert self.breaker is not None
        if self.up:
            self.breaker.succeeded(probing=True)
        else:
            error = StoreUnavailable("away", kind="connection")
            self.breaker.failed(error, began_at=asyncio.get_running_loop().time())
            raise error


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(store: Store, clock: Clock) -> Breaker:
    store.breaker = Breaker(store.probe, clock=clock)
    return store.breaker


def fail(breaker: Breaker, kind: str, *, began_at: float | None = None) -> None:
    began_at = breaker._clock() if began_at is None else began_at
    breaker.failed(StoreUnavailable(f"session store failed: {kind}", kind=kind), began_at=began_at)


async def test_a_fault_that_the_store_reports_about_itself_opens_it_at_once(store: Store) -> None:
    for kind in STORE_WIDE_FAULTS:
        breaker = Breaker(store.probe)
        fail(breaker, kind)
        with pytest.raises(StoreUnavailable, match=kind) as raised:
            breaker.check()
        assert raised.value.kind == "open"
        await breaker.aclose()


async def test_another_format_opens_it_even_with_opens_false(store: Store) -> None:
    # In a Cluster, the format of one node is that of all.
    for kind in STORE_WIDE_FAULTS:
        breaker = Breaker(store.probe, opens=False)
        fail(breaker, kind)
        assert (breaker.fault is not None) == (kind == "schema")
        await breaker.aclose()


async def test_with_probe_first_no_call_is_made_before_a_probe_succeeds(store: Store, clock: Clock) -> None:
    breaker = store.breaker = Breaker(store.probe, probe_first=True, clock=clock)
    for expected in ("not probed yet", "connection", "denied"):
        with pytest.raises(StoreUnavailable, match=expected) as raised:
            breaker.check()
        assert raised.value.kind == "open"
        # The success of an ordinary call does not count as a probe.
        breaker.succeeded()
        fail(breaker, "connection" if expected == "not probed yet" else "denied")
    store.up = True
    await store.probe()
    breaker.check()
    await breaker.aclose()


async def test_it_opens_after_three_failures_in_a_row(store: Store, clock: Clock) -> None:
    for kind in COUNTED_FAULTS:
        breaker = Breaker(store.probe, clock=clock)
        for _ in range(2):
            fail(breaker, kind)
            breaker.check()
        breaker.succeeded()
        for _ in range(3):
            breaker.check()
            clock.now += 1
            fail(breaker, kind)
        assert breaker.fault is not None
        await breaker.aclose()


async def test_a_connection_that_breaks_under_a_whole_batch_is_one_failure(breaker: Breaker, clock: Clock) -> None:
    began_at = clock.now
    clock.now += 0.01
    for _ in range(128):
        fail(breaker, "connection", began_at=began_at)
    breaker.check()


@pytest.mark.parametrize("kind", ["refused", "denied", "cluster_down"])
async def test_a_fault_of_one_call_does_not_open_it(breaker: Breaker, kind: str) -> None:
    for _ in range(1000):
        fail(breaker, kind)
    breaker.check()
    assert breaker.failing_seconds is None


async def test_one_probe_at_a_time_closes_it_soon_after_the_store_is_back(breaker: Breaker, store: Store) -> None:
    notified: list[bool] = []
    breaker.add_listener(notified.append)
    fail(breaker, "loading")
    # A call that was in flight says nothing about now.
    breaker.succeeded()
    assert breaker.fault is not None
    await until(lambda: store.probes >= 3)
    store.up = True
    await until(lambda: breaker.fault is None)
    breaker.check()
    assert (notified, store.most_at_once, breaker.failing_seconds) == ([False, True], 1, None)
    probes = store.probes
    await asyncio.sleep(0.6)
    assert store.probes == probes


async def test_each_transition_is_one_line(breaker: Breaker, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gatekeeper")
    for _ in range(2):
        store.up = False
        fail(breaker, "loading")
        for kind in ("connection", "timeout", "loading"):
            fail(breaker, kind)
        store.up = True
        await until(lambda: breaker.fault is None)
    events = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert events == ["session store is not called until a probe succeeds", "session store works again"] * 2


async def test_the_line_states_the_length_of_this_outage_alone(
    breaker: Breaker, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # A fault that passed, nine seconds before: one outage for degraded mode, another one for who reads the log.
    caplog.set_level(logging.INFO, logger="gatekeeper")
    store.up = False
    fail(breaker, "timeout", began_at=clock.now)
    breaker.succeeded()
    clock.now += 9
    fail(breaker, "loading", began_at=clock.now)
    clock.now += 3
    store.up = True
    await until(lambda: breaker.fault is None)
    assert caplog.records[-1].getMessage() == "session store works again: a probe succeeded after 3.0 s"


async def test_once_closed_down_it_ignores_failures(breaker: Breaker, caplog: pytest.LogCaptureFixture) -> None:
    await breaker.aclose()
    fail(breaker, "loading")
    breaker.check()
    assert caplog.records == []


def test_how_long_it_has_failed_is_counted_from_the_first_call(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "timeout", began_at=clock.now)
    clock.now += 4
    fail(breaker, "timeout")
    assert breaker.failing_seconds == pytest.approx(4, abs=0.001)
    # Successes among failures do not end an outage; ten seconds without a failure do.
    breaker.succeeded()
    clock.now += 9
    fail(breaker, "timeout")
    assert breaker.failing_seconds == pytest.approx(13, abs=0.001)
    clock.now += 11
    breaker.succeeded()
    fail(breaker, "timeout")
    assert breaker.failing_seconds == pytest.approx(0, abs=0.001)


def test_every_kind_is_a_label() -> None:
    assert set(STORE_FAULTS) >= STORE_WIDE_FAULTS | COUNTED_FAULTS
    for text, kind in {
        "LOADING Redis is loading the dataset in memory": "loading",
        "READONLY You can't write against a read only replica.": "read_only",
        "OOM command not allowed when used memory > 'maxmemory'.": "out_of_memory",
        "MISCONF Errors writing to the AOF file: No space left": "not_persisting",
        "NOREPLICAS Not enough good replicas to write.": "no_replicas",
        "MASTERDOWN Link with MASTER is down": "no_primary",
        "BUSY Redis is busy running a script.": "busy",
        "NOAUTH Authentication required.": "unauthenticated",
        "ERR Protocol error: unauthenticated multibulk length": "unauthenticated",
        "WRONGPASS invalid username-password pair": "unauthenticated",
        "NOPERM this user has no permissions": "denied",
        "CLUSTERDOWN Hash slot not served": "cluster_down",
        "SCHEMA it holds format 2, and this Gatekeeper has format 1": "schema",
        "ERR max number of clients reached": "too_many_clients",
        "ERR user_script:1: a record is garbled script: f_1, on @user_script:1.": "refused",
        "WRONGTYPE Operation against a key": "refused",
        "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed": (
            "out_of_memory"
        ),
    }.items():
        assert kind_of_reply(text) == kind
        assert kind in STORE_FAULTS
