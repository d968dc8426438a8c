"""The client of the store: batches, lost and surplus replies, and a store that is frozen, down or refuses calls."""

from __future__ import annotations

import asyncio
import os
import signal
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
import redis
from hiredis import ReplyError

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Script, command
from gatekeeper.store.connection import PendingCall, StoreConnection
from gatekeeper.store.embedded import server_binary
from gatekeeper.store.errors import unavailable_from
from gatekeeper.store.queue import MAX_IN_FLIGHT, MAX_WAITING, CommandQueue
from tests.conftest import RULES, store_process, wait_for_store
from tests.machine import need
from tests.waiting import HANG_SECONDS, until

KEY = [b"gk:{74}:sessions"]


def script(source: str) -> Script:
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


ECHO = script("return {KEYS[1], ARGV[1]}")
# For a `ScriptRunner`, whose first argument are the rules.
ECHO_SECOND = script("return {KEYS[1], ARGV[2]}")
PUSH = script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
COUNT = script("return redis.call('INCR', KEYS[1])")
BROKEN = script("return redis.call('INCR')")


class CountingQueue(CommandQueue):
    def __init__(self, counting: Counting, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counting = counting

    def _write(self, connection: StoreConnection, batch: list[PendingCall]) -> None:
        super()._write(connection, batch)
        self._counting.batches.append(len(batch))
        self._counting.most_in_flight = max(self._counting.most_in_flight, len(connection.pending))
        if len(connection.pending) == MAX_IN_FLIGHT:
            self._counting.full.set()


class Counting(StoreClient):
    """Records the size of every batch, and the largest number of calls in flight."""

    def __init__(self, url: str, *, timeout_seconds: float = HANG_SECONDS) -> None:
        self.batches: list[int] = []
        self.most_in_flight = 0
        self.full = asyncio.Event()
        self.queue_class = partial(CountingQueue, self)
        super().__init__(url, timeout_seconds=timeout_seconds)


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[Counting]:
    made = Counting(store_url)
    await made.call(ECHO.command(KEY, ["loaded"]))
    made.batches.clear()
    yield made
    await made.aclose()


@asynccontextmanager
async def opened(url: str, *, timeout_seconds: float = HANG_SECONDS) -> AsyncIterator[StoreClient]:
    store_client = StoreClient(url, timeout_seconds=timeout_seconds)
    try:
        yield store_client
    finally:
        await store_client.aclose()


async def failure(call: Awaitable[Any]) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        await call
    return caught.value


# Batches


async def test_calls_of_one_turn_of_the_loop_leave_in_batches_of_eight(store_client: Counting) -> None:
    replies = await asyncio.gather(*(store_client.call(ECHO.command(KEY, [number])) for number in range(100)))
    assert replies == [[KEY[0], str(number).encode()] for number in range(100)]
    # Not in one write: the store works on the first batches while the next ones are made.
    assert store_client.batches == [8] * 12 + [4]


async def test_a_call_alone_leaves_at_once(store_client: Counting) -> None:
    for number in range(3):
        assert await store_client.call(ECHO.command(KEY, [number])) == [KEY[0], str(number).encode()]
    assert store_client.batches == [1, 1, 1]


async def test_batches_are_bounded_and_so_is_their_number(store_client: Counting) -> None:
    # P0-S14: thousands at once, and none is refused
    replies = await asyncio.gather(*(store_client.call(ECHO.command(KEY, [number])) for number in range(3_000)))
    assert [int(reply[1]) for reply in replies] == list(range(3_000))
    assert max(store_client.batches) == store_client.most_in_flight == MAX_IN_FLIGHT
    assert sum(store_client.batches) == 3_000


@pytest.mark.slow
async def test_more_calls_than_may_wait_are_turned_away_at_once(store_client: Counting) -> None:
    # R4: an unbounded queue would fail later, and take the process with it
    outcomes = await asyncio.gather(
        *(store_client.call(ECHO.command(KEY, [number])) for number in range(MAX_IN_FLIGHT + MAX_WAITING + 100)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, StoreUnavailable) for outcome in outcomes].count(True) == 100
    assert await store_client.call(ECHO.command(KEY, ["later"])) == [KEY[0], b"later"]


async def test_calls_of_one_turn_run_in_the_order_in_which_they_were_made(store_client: Counting) -> None:
    replies = await asyncio.gather(*(store_client.call(PUSH.command(KEY, [number])) for number in range(MAX_IN_FLIGHT)))
    assert replies == list(range(1, MAX_IN_FLIGHT + 1))


async def test_one_that_fails_in_a_batch_fails_alone(store_client: Counting) -> None:
    calls = [store_client.call((BROKEN if number % 3 == 0 else ECHO).command(KEY, [number])) for number in range(60)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    for number, reply in enumerate(replies):
        if number % 3 == 0:
            assert isinstance(reply, StoreUnavailable)
            assert reply.kind == "refused"
        else:
            assert reply == [KEY[0], str(number).encode()]


@pytest.mark.parametrize("argument", [None, "\ud800", object()])
async def test_an_argument_that_cannot_be_sent_is_its_callers_fault_alone(
    store_client: Counting, argument: Any
) -> None:
    good = asyncio.create_task(store_client.call(ECHO.command(KEY, ["good"])))
    with pytest.raises(StoreUnavailable):
        ECHO.command(KEY, [argument])
    with pytest.raises(StoreUnavailable):
        command("SET", b"key", argument)
    assert await good == [KEY[0], b"good"]
    assert await store_client.call(ECHO.command(KEY, ["later"])) == [KEY[0], b"later"]


# Scripts that the store forgets


async def test_a_script_that_the_store_forgot_runs_all_the_same_and_once(
    store_client: Counting, store_url: str
) -> None:
    # R9
    with redis.Redis.from_url(store_url) as client:
        for expected in range(1, 11):
            client.script_flush()
            assert await store_client.call(COUNT.command(KEY, [])) == expected


async def test_a_store_that_forgets_scripts_all_the_time_fails_no_call(store_client: Counting, store_url: str) -> None:
    # R9: flushed after every reply, far more often than every 10 ms
    done = threading.Event()

    def flush() -> None:
        with redis.Redis.from_url(store_url) as client:
            while not done.is_set():
                client.script_flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        for _ in range(20):
            await asyncio.gather(*(store_client.call(COUNT.command(KEY, [])) for _ in range(50)))
    finally:
        done.set()
        thread.join()
    assert await store_client.call(COUNT.command(KEY, [])) == 1_001


# Callers that leave


@pytest.mark.parametrize("delay", [0.0, 0.005])
async def test_cancelling_half_of_500_callers_never_shifts_a_reply(store_url: str, delay: float) -> None:
    # R20, P0-S15: the class of CVE-2023-28858 and CVE-2023-28859
    async with relay(store_url, delay=delay) as url, opened(url) as store_client:
        for round_number in range(6):
            tasks = [
                asyncio.create_task(store_client.call(ECHO.command(KEY, [f"{round_number}-{n}"]))) for n in range(500)
            ]
            await asyncio.sleep(0.001 * round_number)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                if number % 2 == 0 and isinstance(outcome, asyncio.CancelledError):
                    continue
                assert outcome == [KEY[0], f"{round_number}-{number}".encode()]
        assert "[0 waiting, 0 in flight]" in repr(store_client)


async def test_the_call_of_a_caller_that_has_left_is_not_sent(store_client: Counting) -> None:
    counted = await store_client.call(COUNT.command(KEY, []))
    store_client.batches.clear()
    tasks = [asyncio.create_task(store_client.call(COUNT.command(KEY, []))) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[:9]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Eight are a batch, which is sent at once. Of the two that wait, one caller has left.
    assert store_client.batches == [8, 1]
    assert await tasks[9] == counted + 9


async def test_calls_that_wait_at_the_close_fail_and_are_not_sent(store_url: str) -> None:
    cut = Cut()
    async with relay(store_url, cut=cut) as url:
        store_client = Counting(url, timeout_seconds=600)
        await store_client.call(ECHO.command(KEY, ["warm"]))
        cut.delay = 600
        store_client.batches.clear()
        tasks = [
            asyncio.create_task(store_client.call(ECHO.command(KEY, [number]))) for number in range(MAX_IN_FLIGHT + 50)
        ]
        await asyncio.wait_for(store_client.full.wait(), HANG_SECONDS)
        async with asyncio.timeout(HANG_SECONDS):
            await store_client.aclose()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert repr(store_client) == "<StoreClient [0 waiting, 0 in flight]>"
        assert sum(store_client.batches) == MAX_IN_FLIGHT


# A store that is in trouble


@contextmanager
def store_of_its_own(*options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with store_process(server_binary(), *options) as made:
        yield made


async def test_a_frozen_store_is_an_error_in_time_and_no_trouble_afterwards() -> None:
    # R2, P0-S12; rule 2.8: STORE_TIMEOUT bounds one call
    with store_of_its_own() as (url, process):
        async with opened(url, timeout_seconds=3) as store_client:
            await store_client.call(ECHO.command(KEY, ["warm"]))
            os.kill(process.pid, signal.SIGSTOP)
            # One time-out after the other for what is sent together would be a minute.
            calls = [store_client.call(ECHO.command(KEY, [number])) for number in range(20 * MAX_IN_FLIGHT)]
            async with asyncio.timeout(HANG_SECONDS):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"timeout"}
            assert (await failure(store_client.time())).kind == "timeout"
            os.kill(process.pid, signal.SIGCONT)
            await until_served(store_client)
            replies = await asyncio.gather(*(store_client.call(ECHO.command(KEY, [number])) for number in range(500)))
            assert [int(reply[1]) for reply in replies] == list(range(500)), "no reply of before is left"


async def until_served(store_client: StoreClient) -> None:
    async def is_served() -> bool:
        try:
            await store_client.call(ECHO.command(KEY, ["there?"]))
        except StoreUnavailable:
            return False
        return True

    await until(is_served)


async def test_a_store_that_is_down_is_an_error_at_once() -> None:
    # R1: no retries, whatever the timeout
    with tempfile.TemporaryDirectory() as folder:
        for url in (f"unix://{folder}/nowhere", "redis://127.0.0.1:1"):
            async with opened(url, timeout_seconds=600) as store_client:
                async with asyncio.timeout(HANG_SECONDS):
                    assert (await failure(store_client.call(ECHO.command(KEY, [])))).kind == "connection"
                    assert (await failure(store_client.time())).kind == "connection"


async def test_a_store_that_comes_back_is_used_at_once_by_the_same_client() -> None:
    # R1, K11: the very first call, on each connection of the pool
    with store_of_its_own() as (url, process):
        path = url.removeprefix("unix://")
        async with opened(url) as store_client:
            await asyncio.gather(*(store_client.call(ECHO.command(KEY, [number])) for number in range(MAX_IN_FLIGHT)))
            process.kill()
            process.wait()
            assert (await failure(store_client.call(ECHO.command(KEY, [])))).kind == "connection"
            again = subprocess.Popen(
                [server_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(Path(path).parent)],
                stdout=subprocess.DEVNULL,
            )
            try:
                wait_for_store(url)
                calls = [store_client.call(ECHO.command(KEY, [number])) for number in range(MAX_IN_FLIGHT)]
                replies = await asyncio.gather(*calls)
                assert [int(reply[1]) for reply in replies] == list(range(MAX_IN_FLIGHT))
            finally:
                again.kill()
                again.wait()


async def test_a_restart_between_two_calls_is_not_seen() -> None:
    # R1, R18: stale connections are noticed before they are used
    with store_of_its_own() as (url, _), redis.Redis.from_url(url) as client:
        async with opened(url) as store_client:
            for _ in range(5):
                await asyncio.gather(*(store_client.call(ECHO.command(KEY, [n])) for n in range(MAX_IN_FLIGHT)))
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asyncio.sleep(0.02)


async def test_a_lost_reply_is_an_error_and_the_script_is_not_sent_again(store_url: str) -> None:
    # R1, P0-S13: cut after every number of bytes of the reply ":1\r\n"; redis-py would have sent it again
    with redis.Redis.from_url(store_url) as client:
        client.script_load(COUNT.source)
        for number in range(4):
            client.delete(KEY[0])
            cut = Cut()
            async with relay(store_url, cut=cut) as url, opened(url) as store_client:
                await store_client.call(ECHO.command(KEY, ["warm"]))
                cut.after = number
                assert (await failure(store_client.call(COUNT.command(KEY, [])))).kind == "connection"
                assert client.get(KEY[0]) == b"1"
                assert await store_client.call(COUNT.command(KEY, [])) == 2


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\xff\r\n", b"*3\r\n:1\r\n", b""])
async def test_a_peer_that_is_no_store_is_an_error(garbage: bytes) -> None:
    # R19
    async def reply_with_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(garbage)
        writer.close()

    async with listening(reply_with_garbage) as url, opened(url) as store_client:
        assert (await failure(store_client.call(ECHO.command(KEY, [])))).kind in {"protocol", "connection"}


@pytest.mark.slow
async def test_the_error_of_a_refused_call_has_a_kind_and_no_secret() -> None:
    # R5, R7, R8; rule 8.3: gatekeeper_store_errors_total{kind}
    with store_of_its_own() as (url, _), redis.Redis.from_url(url) as client:
        async with opened(url, timeout_seconds=3) as store_client:
            call: Callable[[], Awaitable[Any]] = lambda: store_client.call(COUNT.command(KEY, ["secret"]))  # noqa: E731
            await call()
            client.config_set("maxmemory", "1")
            assert (await failure(call())).kind == "out_of_memory"
            client.config_set("maxmemory", "0")
            await call()
            client.replicaof("127.0.0.1", "1")
            error = await failure(call())
            assert (error.kind, "READONLY" in str(error)) == ("read_only", True)
            client.replicaof("NO", "ONE")
            await call()
            client.config_set("min-replicas-to-write", "1")
            assert (await failure(call())).kind == "no_replicas"
            client.config_set("min-replicas-to-write", "0")
            await call()
            client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
            assert (await failure(call())).kind == "timeout"
            client.execute_command("CLIENT", "UNPAUSE")
            await call()


async def test_a_call_that_is_refused_temporarily_is_sent_again_and_runs_once() -> None:
    # R7, R8: READONLY, MASTERDOWN
    with store_of_its_own() as (url, _), redis.Redis.from_url(url) as client:
        async with opened(url) as store_client:
            for number, stale in enumerate(("yes", "no"), 1):
                client.config_set("replica-serve-stale-data", stale)
                client.replicaof("127.0.0.1", "1")
                calls = asyncio.gather(*(store_client.call(COUNT.command(KEY, [])) for _ in range(20)))
                await asyncio.sleep(0.3)
                assert not calls.done()
                client.replicaof("NO", "ONE")
                assert max(await calls) == 20 * number


async def test_no_more_than_ten_connections_a_second_are_tried() -> None:
    # R8, R21: however many calls are made
    tried = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        writer.write(b"-ERR max number of clients reached\r\n")
        writer.close()

    async with listening(refuse) as url, opened(url) as store_client:
        begun = time.monotonic()
        while time.monotonic() - begun < 1 or tried < 2:
            await asyncio.gather(*(failure(store_client.call(ECHO.command(KEY, []))) for _ in range(10)))
        assert tried <= (time.monotonic() - begun) * 10 + 2


async def test_a_full_store_is_used_again_once_there_is_room() -> None:
    # R21
    with store_of_its_own() as (url, _), redis.Redis.from_url(url) as client:
        client.config_set("maxclients", "1")
        async with opened(url) as store_client:
            assert (await failure(store_client.call(ECHO.command(KEY, [])))).kind in {"connection", "refused"}
            client.config_set("maxclients", "100")
            assert await store_client.call(ECHO.command(KEY, ["x"])) == [KEY[0], b"x"]


@pytest.mark.parametrize("surplus", [b">2\r\n$10\r\ninvalidate\r\n$1\r\nx\r\n", b"\x00\r\n"])
async def test_bytes_that_are_no_reply_close_the_connection_and_shift_no_reply(surplus: bytes) -> None:
    # R19, P0-S15: after it no reply can be matched to a call with certainty
    cut = Cut()
    with store_of_its_own() as (url, _):
        async with relay(url, cut=cut) as through, opened(through) as store_client:
            await store_client.call(ECHO.command(KEY, ["warm"]))
            cut.surplus = surplus
            outcomes = await asyncio.gather(
                *(store_client.call(ECHO.command(KEY, [number])) for number in range(50)), return_exceptions=True
            )
            assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"protocol"}
            assert await store_client.call(ECHO.command(KEY, ["later"])) == [KEY[0], b"later"]


@pytest.mark.parametrize("surplus", [b":1\r\n", b"*2\r\n$3\r\nxyz\r\n$1\r\nx\r\n"])
async def test_a_surplus_reply_is_recognised_by_its_key_and_closes_the_connection(surplus: bytes) -> None:
    # R19, P0-S15
    cut = Cut()
    with store_of_its_own() as (url, _):
        async with relay(url, cut=cut) as through, opened(through) as store_client:
            runner = ScriptRunner(store_client, key_prefix="gk:", rules=RULES)
            users = [str(number) for number in range(50)]
            await runner.run_positional(ECHO_SECOND, "warm", str, "x")
            cut.surplus = surplus
            outcomes = await asyncio.gather(
                *(runner.run_positional(ECHO_SECOND, user, str, user) for user in users), return_exceptions=True
            )
            assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"protocol"}
            later = await asyncio.gather(
                *(runner.run_positional(ECHO_SECOND, user, lambda reply: reply[1], user) for user in users)
            )
            assert later == [user.encode() for user in users]


class RecordingBreaker(Breaker):
    """Records what the client reports. It refuses calls only once a test sets `refuses`."""

    def __init__(self) -> None:
        super().__init__(partial(asyncio.sleep, 0))
        self.checks = 0
        self.reports: list[str] = []
        self.began_at = 0.0
        self.refuses = False

    def check(self) -> None:
        self.checks += 1
        if self.refuses:
            raise StoreUnavailable("closed", kind="connection")

    def succeeded(self, *, probing: bool = False) -> None:
        self.reports.append("probed" if probing else "succeeded")

    def failed(self, error: StoreUnavailable, *, began_at: float) -> None:
        self.reports.append(error.kind)
        self.began_at = began_at


async def test_the_breaker_is_asked_before_calls_and_told_after_them() -> None:
    breaker = RecordingBreaker()
    with store_of_its_own() as (url, process):
        store_client = StoreClient(url, timeout_seconds=2, breaker=breaker)
        assert await store_client.call(ECHO.command(KEY, ["x"])) == [KEY[0], b"x"]
        assert await store_client.call(command("GET", b"x")) is None
        assert breaker.checks == 2
        assert set(breaker.reports) == {"succeeded"}
        breaker.refuses = True
        assert str(await failure(store_client.call(ECHO.command(KEY, ["x"])))) == "closed"
        assert str(await failure(store_client.time())) == "closed"
        assert await store_client.call(ECHO.command(KEY, ["x"]), is_probe=True) == [KEY[0], b"x"]
        store_client.probe_succeeded()
        assert breaker.reports[-1] == "probed"
        process.kill()
        process.wait()
        before = asyncio.get_running_loop().time()
        await failure(store_client.call(ECHO.command(KEY, ["x"]), is_probe=True))
        assert breaker.reports[-1] == "connection"
        assert before <= breaker.began_at <= asyncio.get_running_loop().time()
        await store_client.aclose()


async def test_a_wrong_password_is_an_error_that_does_not_show_it() -> None:
    # R8, U10
    with store_of_its_own() as (url, _), redis.Redis.from_url(url) as client:
        client.config_set("requirepass", "the-right-one")
        path = url.removeprefix("unix://")
        for given in ("", ":a-secret@"):
            async with opened(f"unix://{given}{path}") as store_client:
                error = await failure(store_client.call(ECHO.command(KEY, [])))
                assert error.kind in {"connection", "unauthenticated"}
                assert "a-secret" not in f"{error} {error!r} {store_client!r} {error.__cause__!r}"
        async with opened(f"unix://:the-right-one@{path}") as store_client:
            assert await store_client.call(ECHO.command(KEY, ["x"])) == [KEY[0], b"x"]
            assert "right-one" not in repr(store_client)
        client.execute_command("AUTH", "the-right-one")


def test_an_error_text_holds_the_kind_alone() -> None:
    assert str(unavailable_from(TimeoutError("secret"))) == "session store failed: timeout (TimeoutError)"
    assert str(unavailable_from(OSError("secret"))) == "session store failed: connection (OSError)"
    assert str(unavailable_from(OSError(24, "Too many open files"))) == (
        "session store failed: connection (OSError: Too many open files)"
    )
    assert str(unavailable_from(ReplyError("NOPERM secret"))) == "session store failed: denied (NOPERM)"
    assert unavailable_from(ValueError("secret")).kind == "protocol"


# Questions about the server


async def test_the_clock_is_the_store_s(store_client: Counting) -> None:
    began = time.time()
    assert began - 1 < await store_client.time() < time.time() + 1


async def test_a_parameter_of_the_server_or_none(store_client: Counting, store_url: str) -> None:
    assert await store_client.configuration("maxmemory-policy") == "noeviction"
    assert await store_client.configuration("no-such-parameter") is None
    with redis.Redis.from_url(store_url) as client:
        client.execute_command("ACL", "SETUSER", "managed", "on", ">pw", "~*", "+@all", "-config")
        async with opened(store_url.replace("unix://", "unix://managed:pw@")) as managed:
            assert await managed.configuration("maxmemory-policy") is None
            assert await managed.call(ECHO.command(KEY, ["x"])) == [KEY[0], b"x"]
        client.execute_command("ACL", "DELUSER", "managed")


async def test_its_status_line_counts_waiting_calls(store_client: Counting) -> None:
    assert repr(store_client) == "<StoreClient [0 waiting, 0 in flight]>"
    tasks = [asyncio.create_task(store_client.call(ECHO.command(KEY, [number]))) for number in range(3)]
    await asyncio.sleep(0)
    assert repr(store_client) in {"<StoreClient [3 waiting, 0 in flight]>", "<StoreClient [0 waiting, 3 in flight]>"}
    await asyncio.gather(*tasks)


async def test_rediss_with_a_ca_file_uses_tls(tmp_path: Path) -> None:
    # REDIS_URL rediss://, STORE_CA_FILE
    openssl = need("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    arguments += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *arguments], check=True, capture_output=True)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(tls_store(key, certificate))
        url = f"rediss://127.0.0.1:{port}"
        for ca_file, works in ((str(certificate), True), (None, False)):
            store_client = StoreClient(url, ca_file=ca_file, timeout_seconds=HANG_SECONDS)
            stack.push_async_callback(store_client.aclose)
            if works:
                assert await store_client.call(ECHO.command(KEY, ["x"])) == [KEY[0], b"x"]
            else:
                assert (await failure(store_client.call(ECHO.command(KEY, [])))).kind == "connection"


# Peers made for a test


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="gk-") as folder:
        server = await asyncio.start_unix_server(serve, f"{folder}/relay.sock")
        async with server:
            yield f"unix://{folder}/relay.sock"


class Cut:
    """Faults of a relay: it cuts the next reply, and the connection, after `after` bytes, and adds `delay` seconds."""

    after: int | None = None
    delay = 0.0
    # Bytes that are sent before the next reply.
    surplus = b""


@asynccontextmanager
async def relay(store_url: str, *, delay: float = 0.0, cut: Cut | None = None) -> AsyncIterator[str]:
    """A TCP relay to the store that is slow, or breaks on command."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if to_client:
                    await asyncio.sleep(delay + (cut.delay if cut is not None else 0.0))
                    if cut is not None and cut.after is not None:
                        writer.write(data[: cut.after])
                        cut.after = None
                        break
                    if cut is not None:
                        data, cut.surplus = cut.surplus + data, b""
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_store, to_store = await asyncio.open_unix_connection(store_url.removeprefix("unix://"))
        for task in (
            asyncio.create_task(pump(reader, to_store, to_client=False)),
            asyncio.create_task(pump(from_store, writer, to_client=True)),
        ):
            tasks.add(task)

    async with listening(serve) as url:
        yield url
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def tls_store(key: Path, certificate: Path) -> AsyncIterator[int]:
    """A relay that adds TLS to a store, since the servers may have been built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with store_of_its_own() as (url, _):
        tasks: set[asyncio.Task[None]] = set()

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
            except OSError:
                pass
            finally:
                writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from_store, to_store = await asyncio.open_unix_connection(url.removeprefix("unix://"))
            tasks.update((asyncio.create_task(pump(reader, to_store)), asyncio.create_task(pump(from_store, writer))))

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


GARBLED = [b"*2\r\n$10\r\n1796098m08\r\n$1\r\n0\r\n", b"*2\r\n$3\r\nnan\r\n$1\r\n0\r\n", b"*1\r\n$1\r\n1\r\n"]
GARBLED += [
    b"$2\r\nno\r\n",
    b"*2\r\n*0\r\n$1\r\n0\r\n",
    b"*3\r\n$6\r\nmaster\r\n:1\r\n$-1\r\n",
    b"*0\r\n",
    b":7\r\n",
    b"$-1\r\n",
]


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that replies the same to whatever it is asked."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while self.request.recv(65_536):
                    self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        # The connections end with the loop of the test.
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("reply", GARBLED)
async def test_a_reply_of_another_form_is_no_clock_no_replica_and_no_parameter(reply: bytes) -> None:
    with answering(reply) as url:
        async with opened(url, timeout_seconds=5) as client:
            assert (await failure(client.time())).kind == "protocol"
            assert await client.connected_replicas() in (0, None)
            assert isinstance(await client.configuration("save"), str | None)
