"""Data loss, as running Gatekeepers notice it, and stores with another format (R15, R16, K12; rule 4.9)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims, Client
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.epoch import SCHEMA, Epoch
from tests.conftest import RULES
from tests.waiting import HANG_SECONDS

CLIENT = Client(ip_address="192.0.2.1", user_agent="")


class Gatekeeper:
    """The store as one process sees it."""

    def __init__(self, url: str) -> None:
        self.store_client = StoreClient(url, timeout_seconds=HANG_SECONDS)
        self.epoch = Epoch(self.store_client, key_prefix="gk:")
        self.store = SessionStore(ScriptRunner(self.store_client, key_prefix="gk:", rules=RULES, epoch=self.epoch))

    async def word(self, token: Claims) -> str:
        return (await self.store.check(token, CLIENT)).outcome


@asynccontextmanager
async def gatekeepers(url: str, number: int) -> AsyncIterator[list[Gatekeeper]]:
    made = [Gatekeeper(url) for _ in range(number)]
    try:
        yield made
    finally:
        for each in made:
            await each.epoch.aclose()
            await each.store_client.aclose()


def token(reference: str, *, issued_at: float | None) -> Claims:
    return Claims(
        user="74",
        reference=reference,
        jti=reference,
        roles=(),
        is_admin=False,
        issued_at=issued_at,
        expires_at=time.time() + 600,
        claims={},
    )


async def test_a_first_start_and_a_later_one_know_of_no_loss(store_url: str) -> None:
    async with gatekeepers(store_url, 3) as all_of_them:
        for each in all_of_them:
            for _ in range(3):
                await each.epoch.beat()
        assert {each.epoch.adopt_not_before for each in all_of_them} == {0}
        assert len({each.epoch.id for each in all_of_them}) == 1


async def test_the_clock_is_the_stores(store_url: str) -> None:
    async with gatekeepers(store_url, 1) as (one,):
        began = time.time()
        assert began - 1 < await one.epoch.beat() < time.time() + 1


async def test_callers_at_the_same_time_share_one_heartbeat(store_url: str) -> None:
    async with gatekeepers(store_url, 1) as (one,):
        assert len(set(await asyncio.gather(*(one.epoch.beat() for _ in range(50))))) == 1
        with redis.Redis.from_url(store_url) as client:
            assert client.hget("gk:epoch", "beats") == b"1"


async def test_no_token_of_before_a_loss_opens_a_session(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="gatekeeper")
    async with gatekeepers(store_url, 2) as (one, two):
        await one.epoch.beat()
        await two.epoch.beat()
        before = [token("a", issued_at=time.time()), token("b", issued_at=None)]
        assert [await one.word(each) for each in before] == ["opened", "opened"]
        with redis.Redis.from_url(store_url) as client:
            client.flushall()
        # No heartbeat since: the script of the check itself notices.
        assert [await one.word(each) for each in before] == ["unknown", "unknown"]
        assert [await two.word(each) for each in before] == ["unknown", "unknown"]
        assert one.epoch.adopt_not_before == two.epoch.adopt_not_before > 0
        assert one.epoch.id == two.epoch.id
        assert await two.word(token("c", issued_at=time.time() + 2)) == "opened"
    # Each of the two says so once.
    lines = [record.getMessage().split(";")[0] for record in caplog.records]
    assert lines == ["session store lost data: it is empty"] * 2


async def test_one_process_notices_a_loss_and_all_agree(store_url: str) -> None:
    async with gatekeepers(store_url, 5) as all_of_them:
        for each in all_of_them:
            await each.epoch.beat()
        for _ in range(5):
            with redis.Redis.from_url(store_url) as client:
                client.flushall()
            known = all_of_them[0].epoch.adopt_not_before
            await asyncio.gather(*(each.epoch.beat() for each in all_of_them))
            (instant,) = {each.epoch.adopt_not_before for each in all_of_them}
            assert instant > known
            # No process notices the same loss twice.
            await asyncio.gather(*(each.epoch.beat() for each in all_of_them))
            assert {each.epoch.adopt_not_before for each in all_of_them} == {instant}


async def test_one_that_starts_in_between_hides_no_loss(store_url: str) -> None:
    async with gatekeepers(store_url, 2) as (running, starting):
        await running.epoch.beat()
        with redis.Redis.from_url(store_url) as client:
            client.flushall()
        await starting.epoch.beat()
        assert starting.epoch.adopt_not_before == 0
        await running.epoch.beat()
        await starting.epoch.beat()
        assert starting.epoch.adopt_not_before == running.epoch.adopt_not_before > 0


async def test_an_older_copy_is_noticed(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gatekeepers(store_url, 2) as (one, two):
        await one.epoch.beat()
        with redis.Redis.from_url(store_url) as client:
            copy = client.dump("gk:epoch")
            for each in (one, two, one):
                await each.epoch.beat()
            assert isinstance(copy, bytes)
            client.restore("gk:epoch", 0, copy, replace=True)
        await asyncio.gather(one.epoch.beat(), two.epoch.beat())
        await asyncio.gather(one.epoch.beat(), two.epoch.beat())
        assert one.epoch.adopt_not_before == two.epoch.adopt_not_before > 0
    assert "it is an older copy" in caplog.records[0].getMessage()


async def test_another_store_is_noticed(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gatekeepers(store_url, 2) as (one, other):
        await one.epoch.beat()
        with redis.Redis.from_url(store_url) as client:
            client.delete("gk:epoch")
            await other.epoch.beat()
        # Whichever epoch a process knows, it notices once.
        for _ in range(5):
            await one.epoch.beat()
            await other.epoch.beat()
        assert one.epoch.adopt_not_before == other.epoch.adopt_not_before > 0
    (record,) = caplog.records
    assert "another store" in record.getMessage()


async def test_adopt_not_before_never_goes_back(store_url: str) -> None:
    async with gatekeepers(store_url, 1) as (one,):
        await one.epoch.beat()
        with redis.Redis.from_url(store_url) as client:
            client.flushall()
            await one.epoch.beat()
            noticed = one.epoch.adopt_not_before
            client.hset("gk:epoch", "adopt_not_before", "0")
        await one.epoch.beat()
        assert one.epoch.adopt_not_before == noticed


async def test_adopt_not_before_is_written_to_a_store_without_it(store_url: str) -> None:
    # In a Cluster, the loss of one primary is written to all.
    async with gatekeepers(store_url, 2) as (one, later):
        one.epoch.adopt_not_before = 123
        await one.epoch.beat()
        await later.epoch.beat()
        assert later.epoch.adopt_not_before == 123


@pytest.mark.parametrize(
    ("theirs", "shown"),
    [("3", "3"), ("0", "0"), ("", ""), ("1.0", "1?0"), ("\r\n+OK " + "x" * 99, "???OK?" + "x" * 14)],
)
async def test_another_format_is_left_alone(store_url: str, theirs: str, shown: str) -> None:
    async with gatekeepers(store_url, 2) as (one, running):
        await running.epoch.beat()
        with redis.Redis.from_url(store_url) as client:
            client.hset("gk:epoch", "schema", theirs)
            before = client.dump("gk:epoch")
            for each in (one, running):
                with pytest.raises(StoreUnavailable) as raised:
                    await each.epoch.beat()
                assert raised.value.kind == "schema"
                assert f"holds format {shown}, and this Gatekeeper has format {SCHEMA}:" in str(raised.value)
            assert client.dump("gk:epoch") == before
            assert one.epoch.id == ""


async def test_the_format_is_written_where_there_is_none(store_url: str) -> None:
    async with gatekeepers(store_url, 1) as (one,):
        with redis.Redis.from_url(store_url, decode_responses=True) as client:
            client.hset("gk:epoch", mapping={"id": "x", "beats": "5", "adopt_not_before": "7", "after": ""})
            await one.epoch.beat()
            stored = {"id": "x", "beats": "6", "adopt_not_before": "7", "after": "", "schema": str(SCHEMA)}
            assert client.hgetall("gk:epoch") == stored


async def test_no_call_is_made_before_the_first_heartbeat(store_url: str) -> None:
    async with gatekeepers(store_url, 1) as (one,):
        one.store_client.breaker = breaker = Breaker(one.epoch.beat, probe_first=True)
        with redis.Redis.from_url(store_url) as client:
            client.hset("gk:epoch", "schema", SCHEMA + 1)
            for kind in ("open", "schema", "open"):
                with pytest.raises(StoreUnavailable) as raised:
                    await (one.epoch.beat() if kind == "schema" else one.word(token("a", issued_at=time.time())))
                assert raised.value.kind == kind
            assert client.keys() == [b"gk:epoch"]
            client.hset("gk:epoch", "schema", SCHEMA)
            # The breaker sends its own probes.
            async with asyncio.timeout(HANG_SECONDS):
                while breaker.fault is not None:  # noqa: ASYNC110 - what is waited for has no event
                    await asyncio.sleep(0.01)
        assert await one.word(token("a", issued_at=time.time())) == "opened"
        await breaker.aclose()
