"""The audit trail and the mirror where the store is a cluster, or is found through sentinels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from msgspec import structs

from gatekeeper.models import EndReason
from gatekeeper.sessions.audit_reader import AuditReader, RecordedEvent
from gatekeeper.sessions.outbox import MIRROR
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.embedded import server_binary
from tests.conftest import RULES
from tests.faults.topologies import Sharded, Watched, sharded, watched
from tests.faults.traffic import CLIENT
from tests.machine import need
from tests.sessions.by_hand import Door, token

pytestmark = pytest.mark.slow
BINARIES: dict[str, Callable[[], str]] = {"valkey": server_binary, "redis": partial(need, "redis-server")}
TOPOLOGIES: dict[str, Any] = {"cluster": sharded, "sentinel": watched}
USERS = [f"user-{number}" for number in range(20)]


@pytest.fixture(params=[(topology, binary) for topology in TOPOLOGIES for binary in BINARIES], ids="-".join)
def store(request: pytest.FixtureRequest) -> Iterator[Sharded | Watched]:
    topology, binary = request.param
    with TOPOLOGIES[topology](BINARIES[binary]()) as made:
        yield made


async def _events(store_client: StoreClient) -> list[RecordedEvent]:
    return [event async for event in AuditReader(store_client, key_prefix="gk:").read()]


@pytest.mark.parametrize("replicas", [0, 1])
async def test_openings_and_ends_are_on_record_wherever_their_users_lie(
    store: Sharded | Watched, replicas: int
) -> None:
    # A-24, C-32, R14: no script reaches over a slot, and what lies elsewhere is written before
    store_client = StoreClient(store.url, timeout_seconds=5, replicas=replicas)
    rules = structs.replace(RULES, index_sids=True)
    door = Door(SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=rules)))
    sessions, outbox = door.store, door.store._runner.outbox
    try:
        for user in USERS:
            jti = f"{user}-jti"
            assert (await door.log_in(token(jti, user, jti=jti), f"{user}-refresh")).outcome == "opened"
            checked = await sessions.check(token(f"{user}-b", user, jti=f"{user}-b"), CLIENT)
            assert await sessions.end(user, checked.session_id, EndReason.DEACTIVATED) is not None
            assert (await sessions.check(token(f"{user}-b", user, jti=f"{user}-b"), CLIENT)).outcome == "ended"
            assert await sessions.end_all(user, EndReason.REVOKED_BY_USER) == 1
        await outbox.flush()
        events = await _events(store_client)
        for user in USERS:
            own = [(each.event, each.reason) for each in events if each.user_id == user]
            assert own == [
                ("session_opened", "password"),
                ("session_opened", "token"),
                ("session_ended", "deactivated"),
                ("session_ended", "revoked_by_user"),
            ]
            assert await store_client.call(command("GET", f"{MIRROR}{user}-jti")) == b"revoked_by_user"
            assert await store_client.call(command("GET", f"{MIRROR}{user}-b")) == b"deactivated"
            assert await store_client.call(command("EXISTS", outbox._outbox_key(user))) == 0
        assert (await AuditReader(store_client, key_prefix="gk:").last(5))[0] == events[-5:]
        assert await store_client.call(command("EXISTS", "gk:outboxes")) == 0
    finally:
        await store_client.aclose()


async def test_what_a_process_left_behind_is_found_wherever_it_lies(store: Sharded | Watched) -> None:
    # A-24, R14: the note is there before the act
    doomed, other = (StoreClient(store.url, timeout_seconds=5) for _ in range(2))
    left = SessionStore(ScriptRunner(doomed, key_prefix="gk:", rules=RULES))
    finder = SessionStore(ScriptRunner(other, key_prefix="gk:", rules=RULES))
    try:
        await asyncio.gather(*(left.check(token("a", user), CLIENT) for user in USERS))
        notes = await other.call(command("ZRANGE", "gk:outboxes", 0, -1))
        assert len(notes) == len(USERS)
        for note in notes:
            await other.call(command("ZINCRBY", "gk:outboxes", -60_000_000, note))
        assert await finder._runner.outbox.sweep() == len(USERS)
        assert sorted(each.user_id or "" for each in await _events(other)) == sorted(USERS)
        assert await other.call(command("EXISTS", "gk:outboxes")) == 0
    finally:
        await doomed.aclose()
        await other.aclose()
