"""The server of one listening socket: uvicorn, with a drain that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final, cast

import uvicorn

from gatekeeper.server.protocol import HttpServerProtocol

_MOST_ACCEPTED: Final = 4096


def _nothing() -> None:
    """Do nothing: the default callback."""


class Listener(uvicorn.Server):
    """uvicorn without signal handlers, since several listeners share one loop and one drain.

    `protocol` is the class that `config` names; `on_start` is called when connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, protocol: type[HttpServerProtocol]) -> None:
        super().__init__(config)
        self._protocol = protocol
        self.on_start = _nothing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def announce_close(self) -> None:
        """Say `Connection: close` in every response from now on. Connections are still accepted."""
        self._protocol.announces_close = True
        # uvicorn types it as a set of its own classes.
        for connection in cast("set[asyncio.Protocol]", self.server_state.connections):
            if isinstance(connection, HttpServerProtocol):
                connection.announce_close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: uvicorn waits for its connections and tasks, cancels the tasks at the deadline, and closes the
        application last. One more task stands for all responders."""
        self.announce_close()
        await self._accept_waiting(sockets or [])
        tasks = self.server_state.tasks
        responders = self._protocol.responders
        drain = asyncio.create_task(responders.drain())
        tasks.add(drain)
        drain.add_done_callback(tasks.discard)
        await super().shutdown(sockets)
        if self.force_exit:
            # A second signal: what is still in flight ends with the process.
            responders.clear()

    async def _accept_waiting(self, sockets: list[socket.socket]) -> None:
        """Accept the connections that wait: the kernel resets them when the last process closes the socket."""
        loop = asyncio.get_running_loop()
        for listening in sockets:
            listening.setblocking(False)
            for _ in range(_MOST_ACCEPTED):
                try:
                    client, _ = listening.accept()
                except OSError:
                    break
                await loop.connect_accepted_socket(self._connection, client)

    def _connection(self) -> HttpServerProtocol:
        return self._protocol(self.config, self.server_state, self.lifespan.state)
