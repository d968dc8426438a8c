"""The registry of responses without an application, as the drain asks it."""

from __future__ import annotations

import asyncio

import pytest

from gatekeeper.http.types import Scope
from gatekeeper.server.responders import DirectResponders
from tests.waiting import HANG_SECONDS


class Busy:
    def __init__(self) -> None:
        self.cancelled = 0

    def client_left(self) -> None: ...

    def client_writable(self) -> None: ...

    def body_arrived(self) -> None: ...

    def rejected(self, scope: Scope) -> None: ...

    def cancel(self) -> None:
        self.cancelled += 1


async def test_the_drain_waits_for_the_last_one() -> None:
    responders, first, last = DirectResponders(), Busy(), Busy()
    responders |= {first, last}
    drain = asyncio.create_task(responders.drain())
    responders.discard(first)
    done, _ = await asyncio.wait({drain}, timeout=0.3)
    assert not done
    responders.discard(last)
    await asyncio.wait_for(drain, HANG_SECONDS)
    assert first.cancelled == last.cancelled == 0


async def test_at_the_deadline_those_that_are_left_are_cancelled() -> None:
    responders, done, late = DirectResponders(), Busy(), Busy()
    responders |= {done, late}
    drain = asyncio.create_task(responders.drain())
    await asyncio.sleep(0)
    responders.discard(done)
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    assert (done.cancelled, late.cancelled) == (0, 1)
