"""Cancellation of work whose client has disconnected."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol


class ClientDisconnected(Exception):
    """The client disconnected in the middle of its request body."""


class WatchedClient(Protocol):
    """A client whose disconnection can be awaited."""

    async def left(self) -> None:
        """Return when the client has disconnected."""


class CancelWhenClientLeaves:
    """Cancels its block when the client disconnects; execution then continues behind the block without an error.

    Works as `asyncio.timeout`, with the disconnection as the deadline. A cancellation from outside propagates.
    """

    def __init__(self, client: WatchedClient) -> None:
        self._client = client
        self._left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        self._task = task
        self._cancellations = task.cancelling()
        self._watcher: asyncio.Task[None] = asyncio.create_task(self._client.left())
        self._inside = True
        self._watcher.add_done_callback(self._cancel_block)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._inside = False
        if not self._left:
            self._watcher.cancel()
            return kind is ClientDisconnected
        others = self._task.uncancel() > self._cancellations
        self._watcher.result()
        return kind is ClientDisconnected or (kind is asyncio.CancelledError and not others)

    def _cancel_block(self, watcher: asyncio.Task[None]) -> None:
        if self._inside and not watcher.cancelled():
            self._left = True
            self._task.cancel()
