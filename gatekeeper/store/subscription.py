"""A subscription to one channel of the store, over a connection of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from hiredis import ProtocolError, ReplyError

from gatekeeper.store.command import Command, server_command
from gatekeeper.store.connection import NO_MORE, PendingCall, StoreConnection

_PING = server_command("PING")


class Subscription(StoreConnection):
    """A connection that authenticates like others, and after `begin` receives messages only."""

    def __init__(self, channel: str) -> None:
        super().__init__(self)
        self._channel = channel
        self._has_begun = False
        self._events: deque[tuple[bytes, Any]] = deque()
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        self._has_begun = True
        self._send(server_command("SUBSCRIBE", self._channel))

    def ping(self) -> None:
        """Have the server reply with the event `pong`."""
        self._send(_PING)

    async def receive(self, seconds: float) -> tuple[bytes, Any] | None:
        """Return the next event, `subscribe`, `message` or `pong`, with its data; None after so long a silence. Raises
        why the connection was closed."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return None
        return self._events.popleft()

    def _send(self, command: Command) -> None:
        if self._transport is not None:
            self._transport.write(command.packed)

    # Called by the transport

    def data_received(self, data: bytes) -> None:
        if not self._has_begun or self.closed:
            super().data_received(data)
            return
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NO_MORE:
                self._take(reply)
        except (ProtocolError, ReplyError) as error:
            self.close(error)
        self._news.set()

    def _take(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            raise reply
        if not isinstance(reply, list) or len(reply) < 2:
            raise ProtocolError("no event of a subscription")
        self._events.append((reply[0], reply[-1]))

    # Called by the connection itself, for the calls before `begin`

    def reply_received(self, call: PendingCall, reply: Any) -> None:
        if not call.receiver.done():
            call.receiver.set_result(reply)

    def error_received(self, call: PendingCall, error: ReplyError) -> None:
        if not call.receiver.done():
            call.receiver.set_exception(error)

    def replies_read(self) -> None:
        """Do nothing: every reply was handed out."""

    def writing_resumed(self) -> None:
        """Do nothing: little is written."""

    def connection_closed(self, connection: StoreConnection, error: BaseException) -> None:
        self._error = error
        self._news.set()
        for call in self.pending:
            if call is not None:
                call.fail(error)
