"""Sentinels that differ: an election that was followed is never left for an older one (R12, rule 4.11).

The servers are real; the sentinels are scripted, so that what they know, and when they say it, is exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hiredis import Reader

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.embedded import server_binary
from tests.faults.topologies import Node, servers

pytestmark = pytest.mark.slow


class Sentinel:
    """A scripted sentinel: the election that it knows, and how late it replies."""

    def __init__(self, epoch: int, primary: Node) -> None:
        self.epoch, self.primary = epoch, primary
        self.delay = 0.0
        self.leads = False
        self.asked = 0
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def asked_twice(self) -> None:
        """Waits until it was asked twice more."""
        before = self.asked
        while self.asked < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    writer.write(await self._reply(words))
        finally:
            writer.transport.abort()

    async def _reply(self, words: list[bytes]) -> bytes:
        if words[0] != b"SENTINEL":
            return b"+OK\r\n"
        self.asked += 1
        await asyncio.sleep(self.delay)
        port = str(self.primary.port)
        if words[1] == b"GET-MASTER-ADDR-BY-NAME":
            return _array("127.0.0.1", port)
        flags, named = "master", self.primary.port
        if self.leads:
            # As a sentinel does that has promoted a replica and waits for the others to follow it.
            flags, named = "master,failover_in_progress", named + 1
        fields = ("name", "s", "ip", "127.0.0.1", "port", str(named), "flags", flags, "config-epoch", str(self.epoch))
        return _array(*fields)


def _array(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


@pytest.fixture
def pair() -> Iterator[list[Node]]:
    with servers(server_binary(), 2) as made:
        yield made


@asynccontextmanager
async def following(sentinels: list[Sentinel]) -> AsyncIterator[StoreClient]:
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(each.listening()) for each in sentinels]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        client = StoreClient(f"redis+sentinel://{hosts}/s", timeout_seconds=5)
        stack.push_async_callback(client.aclose)
        yield client


async def where(client: StoreClient) -> str:
    """The server that a write goes to."""
    while True:
        try:
            await client.call(command("SET", "where", "here"))
            reply = await client.call(command("GET", "name"))
        except StoreUnavailable:
            await asyncio.sleep(0.05)
        else:
            return str(reply.decode())


@pytest.fixture
def named(pair: list[Node]) -> list[Node]:
    for node, name in zip(pair, ("old", "new"), strict=True):
        node.client.set("name", name)
    return pair


async def test_one_that_knows_more_is_waited_for(named: list[Node]) -> None:
    old, new = named
    sentinels = [Sentinel(1, old), Sentinel(1, old), Sentinel(2, new)]
    sentinels[2].delay = 0.1
    async with following(sentinels) as client:
        assert await where(client) == "new"


async def test_an_older_election_is_never_followed_again(named: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    old, new = named
    sentinels = [Sentinel(1, old), Sentinel(1, old), Sentinel(2, new)]
    async with following(sentinels) as client:
        assert await where(client) == "new"
        # The one that knows is gone: the others know the old primary alone, which still takes itself for one.
        sentinels[2].epoch, sentinels[2].primary = 1, old
        for _ in range(3):
            new.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await where(client) == "new"
            await sentinels[0].asked_twice()
        [line] = [record.getMessage() for record in caplog.records if "election" in record.getMessage()]
        assert line.endswith(f"{new.port}: the sentinels know election 1 at most, and 2 was followed")
        # A newer one is.
        sentinels[0].epoch = 3
        await sentinels[0].asked_twice()
        await sentinels[0].asked_twice()
        assert await where(client) == "old"


async def test_the_leader_of_a_failover_names_the_one_it_promoted(named: list[Node]) -> None:
    # It reports the number of the new election beside the address of the old primary.
    old, new = named
    sentinels = [Sentinel(1, old), Sentinel(1, old), Sentinel(2, new)]
    sentinels[2].leads = True
    async with following(sentinels) as client:
        assert await where(client) == "new"
