"""A queue that spreads signature verification over iterations of the event loop.

Verification runs on the event loop: a thread would not help, since `cryptography` (50.0) holds Python's global lock
while it verifies. The queue bounds the work that a flood of tokens with bad signatures can cause: between two batches
of signatures the loop serves everything else, such as requests whose token is cached and needs no verification.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final

from gatekeeper.errors import TooManySignatures

# One signature takes 22 µs (RS256) to 0.5 ms (ES512); the rest of such a request takes about 0.2 ms.
_PER_TURN: Final = 8
# The default number of connections of a process; about four seconds of work. Only another server than Gatekeeper's
# own, in front of the middleware, can have more requests than connections.
_MAX_WAITING: Final = 10_000


class VerifyQueue:
    """A first-in, first-out queue in front of signature verification, for one event loop at a time.

    `per_turn` verifications start in one iteration ("turn") of the loop; at most `max_waiting` tasks wait.
    """

    def __init__(self, *, per_turn: int = _PER_TURN, max_waiting: int = _MAX_WAITING) -> None:
        self._per_turn = per_turn
        self._max_waiting = max_waiting
        self._left = per_turn
        self._waiting: OrderedDict[asyncio.Task[Any], asyncio.Future[None]] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_scheduled = False

    def __repr__(self) -> str:
        return f"<VerifyQueue: {self._per_turn} per turn, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """The number of waiting tasks."""
        return len(self._waiting)

    async def wait_turn(self) -> None:
        """Return when the calling task may verify one signature.

        Raises `TooManySignatures` where the queue is full, and where `cancel` is called for the task meanwhile.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move_to(loop)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._next_turn, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise TooManySignatures("too many signatures wait to be verified")
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        self._waiting[task] = turn = loop.create_future()
        try:
            await turn
        finally:
            self._waiting.pop(task, None)

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Take `task` out of the queue, because its client has left. Does nothing for a task that does not wait."""
        turn = self._waiting.pop(task, None)
        if turn is not None and not turn.done():
            turn.set_exception(TooManySignatures("the client left before the signature was verified"))

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        # The former loop is closed, as with a test client, and its waiting tasks are gone with it.
        self._loop = loop
        self._waiting.clear()
        self._left = self._per_turn
        self._is_scheduled = False

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next batch; called once for each iteration of the loop while there is work."""
        self._left = self._per_turn
        while self._left and self._waiting:
            _, turn = self._waiting.popitem(last=False)
            # A task that was cancelled has not had the time to leave the queue.
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        self._is_scheduled = self._left < self._per_turn
        if self._is_scheduled:
            loop.call_soon(self._next_turn, loop)
