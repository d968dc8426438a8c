"""A cluster of which one primary loses its data: R15 of the faults; rule 4.9."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
from redis.crc import key_slot

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.embedded import server_binary
from gatekeeper.store.epoch import Epoch
from tests.faults.test_cluster import move
from tests.faults.topologies import SLOTS, Node, Sharded, sharded, until
from tests.system.sidecar import Backend, Sidecar, World, eventually, sidecar, someone, token
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[Sharded]:
    with sharded(server_binary()) as made:
        yield made


@asynccontextmanager
async def epochs(store: Sharded, number: int, *, timeout_seconds: float = 5) -> AsyncIterator[list[Epoch]]:
    store_client = [StoreClient(store.url, timeout_seconds=timeout_seconds) for _ in range(number)]
    made = [Epoch(each, key_prefix="gk:") for each in store_client]
    try:
        yield made
    finally:
        for epoch, each in zip(made, store_client, strict=True):
            await epoch.aclose()
            await each.aclose()


async def beat(epochs: list[Epoch], times: int = 1) -> None:
    for _ in range(times):
        await asyncio.gather(*(epoch.beat() for epoch in epochs))


def watched_at(node: Node) -> list[str]:
    return sorted(str(key) for key in node.client.scan_iter("gk:epoch*"))


def watches(epoch: Epoch, node: Node) -> bool:
    """Whether it has a key there: a map of the slots follows a move a moment later."""
    return bool({key.decode() for key in epoch._seen} & set(watched_at(node)))


def user_at(store: Sharded, number: int) -> str:
    """Whose sessions are at this primary, as the slots are dealt at first."""
    return next(user for user in iter(someone, "") if (key_slot(user.encode()) * 3 + 2) // SLOTS == number)


def noticed(gates: tuple[Sidecar, ...], number: int) -> bool:
    """Whether every process has told of so many losses."""
    return all(len(losses(gate)) == number for gate in gates)


def losses(gate: Sidecar) -> list[str]:
    return [line["event"] for line in gate.log if "lost data" in line["event"]]


async def test_every_primary_is_watched_by_one_key(store: Sharded) -> None:
    async with epochs(store, 3) as several:
        await beat(several, 3)
        assert [len(watched_at(node)) for node in store.primaries] == [1, 1, 1]
        assert "gk:epoch" in [key for node in store.primaries for key in watched_at(node)]
        assert {epoch.adopt_not_before for epoch in several} == {0}


async def test_whichever_primary_loses_its_data_all_agree_and_later_ones_learn_it(store: Sharded) -> None:
    async with epochs(store, 3) as several:
        await beat(several)
        for node in store.primaries:
            known = several[0].adopt_not_before
            node.ask("FLUSHALL")
            # Who looks in between and knows of nothing hides nothing.
            async with epochs(store, 1) as between:
                await beat(between)
            # The second look carries to each what it did not see for itself, and to every key.
            await beat(several, 2)
            (instant,) = {epoch.adopt_not_before for epoch in several}
            assert instant > known
            await beat(several, 2)
            assert {epoch.adopt_not_before for epoch in several} == {instant}
            async with epochs(store, 1) as later:
                await beat(later)
                assert later[0].adopt_not_before == instant
            told = [node.client.hget(key, "adopt_not_before") for node in store.primaries for key in watched_at(node)]
            assert {int(str(each)) for each in told} == {instant}


async def test_slots_that_move_are_no_loss_and_leave_no_primary_unwatched(store: Sharded) -> None:
    first, second, third = store.primaries
    async with epochs(store, 2) as several:
        await beat(several)
        # Those by which each is watched among them, and where the first key lies.
        for key, source, target in (
            *((key, first, second) for key in watched_at(first)),
            *((key, second, third) for key in watched_at(second)),
            *((key, third, first) for key in watched_at(third)),
        ):
            await asyncio.to_thread(move, store, key_slot(key.encode()), source, target)
            await beat(several, 2)
        async with asyncio.timeout(HANG_SECONDS):
            while not all(watches(epoch, node) for epoch in several for node in store.primaries):
                await beat(several)
                await asyncio.sleep(0.1)
        # Somebody who starts now watches by other keys, perhaps.
        async with epochs(store, 1) as later:
            await beat([*several, *later], 3)
            assert {epoch.adopt_not_before for epoch in (*several, *later)} == {0}
            for node in store.primaries:
                known = several[0].adopt_not_before
                node.ask("FLUSHALL")
                await beat([*several, *later])
                assert all(epoch.adopt_not_before > known for epoch in (*several, *later))
                await beat([*several, *later], 2)


async def test_an_ordered_failover_is_no_loss(store: Sharded) -> None:
    async with epochs(store, 2) as several:
        await beat(several, 2)
        for replica in store.replicas:
            replica.ask("CLUSTER", "FAILOVER")
            await asyncio.to_thread(until, replica.is_master, "a successor")
            await asyncio.to_thread(until, lambda: all(map(store.is_whole, store.nodes)), "a whole cluster")
            await beat(several, 3)
        assert {epoch.adopt_not_before for epoch in several} == {0}
        # And the successors are watched.
        store.replicas[2].ask("FLUSHALL")
        await beat(several)
        assert 0 not in {epoch.adopt_not_before for epoch in several}


async def test_a_killed_primary_is_no_loss_and_its_successor_is_watched(store: Sharded) -> None:
    primary, replica = store.primaries[1], store.replicas[1]
    async with epochs(store, 2, timeout_seconds=1) as several:
        await beat(several, 2)
        # Until the replica has what this connection wrote, and so all from before: without a write none is waited for.
        primary.ask("SET", user_at(store, 1), "")
        assert primary.ask("WAIT", 1, int(HANG_SECONDS / 2 * 1000)) == 1
        primary.kill()
        with pytest.raises(StoreUnavailable):
            await beat(several)
        await asyncio.to_thread(until, replica.is_master, "a successor")
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                try:
                    await beat(several)
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
                else:
                    break
        await beat(several, 2)
        assert {epoch.adopt_not_before for epoch in several} == {0}
        replica.ask("FLUSHALL")
        await beat(several)
        assert 0 not in {epoch.adopt_not_before for epoch in several}


def give_all(store: Sharded, lost: Node, heir: Node) -> None:
    """As who repairs a cluster does it: the slots of a primary that is gone are another's, and empty."""
    number = store.primaries.index(lost)
    slots = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
    for node in store.primaries:
        if node is not lost:
            node.ask("CLUSTER", "DELSLOTSRANGE", *slots)
    heir.ask("CLUSTER", "ADDSLOTSRANGE", *slots)
    heir.ask("CLUSTER", "BUMPEPOCH")


@pytest.mark.parametrize("takes_over", ["by_main", "other"])
async def test_slots_that_others_get_without_their_data_are_a_loss(store: Sharded, takes_over: str) -> None:
    # R15
    for node in store.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    async with epochs(store, 2, timeout_seconds=1) as several:
        await beat(several, 2)
        by_main = next(node for node in store.primaries if "gk:epoch" in watched_at(node))
        other, lost = (node for node in store.primaries if node is not by_main)
        heir = by_main if takes_over == "by_main" else other
        for node in (store.replicas[store.primaries.index(lost)], lost):
            node.kill()
        with pytest.raises(StoreUnavailable):
            await beat(several)
        await asyncio.to_thread(give_all, store, lost, heir)
        async with asyncio.timeout(60):
            while not all(epoch.adopt_not_before for epoch in several):
                with suppress(StoreUnavailable):
                    await beat(several)
                await asyncio.sleep(0.1)


async def test_one_that_does_not_answer_hides_no_loss_of_another(store: Sharded) -> None:
    for node in store.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    async with epochs(store, 2, timeout_seconds=60) as (one, two):
        await beat([one, two])
        by_main = next(node for node in store.primaries if "gk:epoch" in watched_at(node))
        frozen, lossy = (node for node in store.primaries if node is not by_main)
        store.replicas[store.primaries.index(frozen)].kill()
        frozen.freeze()
        # Begun before the loss, and both wait for the frozen one: for a minute.
        looking = [asyncio.create_task(epoch.beat()) for epoch in (one, two)]
        try:
            await asyncio.sleep(0.2)
            lossy.ask("FLUSHALL")
            async with asyncio.timeout(HANG_SECONDS):
                while not (one.adopt_not_before and two.adopt_not_before):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.02)
            assert not any(task.done() for task in looking)
        finally:
            frozen.thaw()
        await asyncio.gather(*looking)


async def test_a_primary_that_comes_back_without_its_data_is_noticed(store: Sharded) -> None:
    async with epochs(store, 2, timeout_seconds=1) as several:
        await beat(several, 2)
        # Nobody takes over from it.
        store.replicas[0].kill()
        store.primaries[0].kill()
        store.primaries[0].start()
        await asyncio.to_thread(until, lambda: all(map(store.is_whole, store.primaries)), "a whole cluster")
        async with asyncio.timeout(HANG_SECONDS):
            while 0 in {epoch.adopt_not_before for epoch in several}:
                with suppress(StoreUnavailable):
                    await beat(several)
                await asyncio.sleep(0.1)
        await beat(several, 2)
        assert len({epoch.adopt_not_before for epoch in several}) == 1


async def test_one_that_starts_is_served_while_others_than_the_first_key_are_away(store: Sharded) -> None:
    for node in store.nodes:
        # One of three would soon refuse everything, as it may be the one that is cut off.
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no", "cluster-node-timeout", "60000")
    async with epochs(store, 1) as before:
        await beat(before)
    here = next(node for node in store.primaries if "gk:epoch" in watched_at(node))
    for node in store.nodes:
        if node is not here:
            node.kill()
    async with epochs(store, 1, timeout_seconds=1) as (epoch,):
        store_client = epoch._redis
        store_client.breaker = breaker = Breaker(epoch.beat, opens=False, probe_first=True)
        with pytest.raises(StoreUnavailable, match="not probed yet"):
            await store_client.call(command("GET", "gk:epoch:x"))
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                with pytest.raises(StoreUnavailable):
                    await epoch.beat()
                with suppress(StoreUnavailable):
                    breaker.check()
                    break
        await breaker.aclose()


def let_in(world: World, user: str) -> str:
    """A token that opened a session: one of the second in which a loss was noticed does not."""

    def passed() -> str | None:
        bearing = token(user)
        return bearing if world.fetch("/", bearing).status == 200 else None

    return str(eventually(passed))


def test_what_one_primary_forgot_revives_no_session(store: Sharded) -> None:
    # A session that ended there would be one that nobody knows.
    with (
        Backend() as backend,
        sidecar(backend.url, redis_url=store.url) as one,
        sidecar(backend.url, redis_url=store.url) as other,
    ):
        gates = (one, other)
        worlds = [World(gate.url, lambda: backend.reached) for gate in gates]
        for number, node in enumerate(store.primaries):
            elsewhere = let_in(worlds[0], user_at(store, (number + 1) % 3))
            ended = let_in(worlds[0], user_at(store, number))
            assert worlds[0].fetch("/api/users/me/sessions", ended, method="DELETE").status == 200
            node.ask("FLUSHALL")
            # One is the first to notice; the other learns it from what that one wrote, at its next look.
            eventually(partial(noticed, gates, number + 1))
            time.sleep(1)
            for world in worlds:
                answer = world.refused("/", ended)
                assert (answer.status, b"session_revoked_or_invalid" in answer.body) == (401, True)
                world.passed("/", elsewhere)
            with sidecar(backend.url, redis_url=store.url) as later:
                answer = World(later.url, lambda: backend.reached).refused("/", ended)
                assert (answer.status, b"session_revoked_or_invalid" in answer.body) == (401, True)
                assert losses(later) == []
        assert noticed(gates, 3)
