"""The rules in the store: written by the Gatekeeper that starts, and compared while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec import structs

from gatekeeper.sessions import shared_rules
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.shared_rules import SharedRules
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.epoch import Epoch
from tests.conftest import RULES
from tests.waiting import until

OTHER = structs.replace(RULES, idle_seconds=None, device_limit=7)


@asynccontextmanager
async def of(url: str, rules: Rules) -> AsyncIterator[tuple[StoreClient, SharedRules]]:
    client = StoreClient(url, timeout_seconds=5)
    epoch = Epoch(client, key_prefix="gk:")
    try:
        yield client, SharedRules(client, epoch, key_prefix="gk:", rules=rules)
    finally:
        await epoch.aclose()
        await client.aclose()


@asynccontextmanager
async def watching(shared: SharedRules) -> AsyncIterator[None]:
    task = asyncio.create_task(shared.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_gatekeeper_with_other_settings_is_told_of(  # C09
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_rules, "_LOOK_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "gatekeeper")
    async with of(store_url, RULES) as (client, first), of(store_url, OTHER) as (_, second):
        assert await first.read() is None
        assert await first.differences() == []
        async with watching(first):
            await until(first.read)
            assert await first.read() == RULES
            assert not caplog.records
            differences = await second.differences()
            assert [text.split()[0] for text in differences] == ["GATEKEEPER_IDLE_TIMEOUT", "GATEKEEPER_DEVICE_LIMIT"]
            assert differences[0].startswith("GATEKEEPER_IDLE_TIMEOUT is off here and ")
            async with watching(second):
                await until(lambda: len(caplog.records) == 2)
                levels = {record.levelname: record.getMessage() for record in caplog.records}
                assert levels["INFO"].startswith("session store has the rules of other settings, ")
                assert "GATEKEEPER_DEVICE_LIMIT is" in levels["WARNING"]
                assert "and 7 there" in levels["WARNING"]
                # Each says so once. What the store has lost, or nobody can read, is written again.
                for lost in ("", "{", '{"idle_seconds": "x"}'):
                    await client.call(command("SET", "gk:rules", lost))
                    await until(second.read)
                assert await second.read() in (RULES, OTHER)
                messages = [record.getMessage() for record in caplog.records]
                assert len(set(messages)) == len(messages)


async def test_a_store_of_another_format_is_not_written_to(store_url: str) -> None:
    async with of(store_url, RULES) as (client, shared):
        await shared.read()
        await client.call(command("HSET", "gk:epoch", "schema", "999"))
        async with of(store_url, OTHER) as (_, other), watching(other):
            await asyncio.sleep(0.2)
        assert await client.call(command("GET", "gk:rules")) is None
