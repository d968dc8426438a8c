"""Signatures are verified on the event loop, so many in one turn of it; whoever comes later waits.

No thread would help: `cryptography` (50.0) keeps Python's lock while it verifies. So what a flood of tokens with bad
signatures may take is bounded here: between two signatures the loop comes to everything else, such as requests whose
token is known, which need no turn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final

from gatekeeper.errors import TooManySignatures

# A signature takes 22 µs (RS256) to 0.5 ms (ES512), and what else such a request costs, about 0.2 ms.
_EACH: Final = 8
# As many as a process has connections by default: about four seconds' work. Only who is asked by other servers than
# Gatekeeper's own has more requests than connections.
_MOST_WAITING: Final = 10_000


class Turns:
    """First come, first served. `each` is how many there are in one turn of the loop, `most_waiting` how many wait for
    theirs. Use it on one event loop at a time."""

    def __init__(self, *, each: int = _EACH, most_waiting: int = _MOST_WAITING) -> None:
        self._each = each
        self._most_waiting = most_waiting
        self._left = each
        self._waiting: OrderedDict[asyncio.Task[Any], asyncio.Future[None]] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False

    def __repr__(self) -> str:
        return f"<Turns: {self._each} each, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many wait for theirs."""
        return len(self._waiting)

    async def take(self) -> None:
        """Returns when it is the calling task's turn. Raises `TooManySignatures` where too many wait already, and in a
        task that is forgotten."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move_to(loop)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._next, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        if len(self._waiting) >= self._most_waiting:
            raise TooManySignatures("too many signatures wait to be verified")
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        self._waiting[task] = turn = loop.create_future()
        try:
            await turn
        finally:
            self._waiting.pop(task, None)

    def forget(self, task: asyncio.Task[Any]) -> None:
        """Nobody waits for what `task` does any more. It need not be one that waits here."""
        turn = self._waiting.pop(task, None)
        if turn is not None and not turn.done():
            turn.set_exception(TooManySignatures("the client left before the signature was verified"))

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that has ended, as under a test client, took along who waited there.
        self._loop = loop
        self._waiting.clear()
        self._left = self._each
        self._is_due = False

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """A turn of the loop is over."""
        self._left = self._each
        while self._left and self._waiting:
            _, turn = self._waiting.popitem(last=False)
            # Who was cancelled has not come to leave the queue yet.
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        self._is_due = self._left < self._each
        if self._is_due:
            loop.call_soon(self._next, loop)
