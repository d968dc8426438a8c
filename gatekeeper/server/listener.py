"""The server of one listening socket: uvicorn, with the drain of responses that have no application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from gatekeeper.server.responders import DirectResponders


class Listener(uvicorn.Server):
    """uvicorn without signal handlers, since several listeners share one loop and one drain.

    `responders` is the registry of the protocol class that `config` names.
    """

    def __init__(self, config: uvicorn.Config, responders: DirectResponders) -> None:
        super().__init__(config)
        self._responders = responders

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: uvicorn waits for its connections and tasks, cancels the tasks at the deadline, and closes the
        application last. One more task stands for all responders."""
        tasks = self.server_state.tasks
        drain = asyncio.create_task(self._responders.drain())
        tasks.add(drain)
        drain.add_done_callback(tasks.discard)
        await super().shutdown(sockets)
        if self.force_exit:
            # A second signal: what is still in flight ends with the process.
            self._responders.clear()
