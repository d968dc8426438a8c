"""The relay by itself, between two sockets whose buffers are small, as those of a new connection across a network."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import pytest

from gatekeeper.forward.relay import Relay
from tests.forward.sockets import BINARY, frame
from tests.waiting import HANG_SECONDS, until

_MORE = 1024 * 1024


@dataclass
class Side:
    """A connection after its handshake, and its other end."""

    transport: asyncio.Transport
    held: bytes
    is_lost: bool
    far: socket.socket


async def side(held: bytes) -> Side:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near = listener.accept()[0]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    far.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    transport.pause_reading()
    return Side(transport, held, False, far)


class Activity:
    moved_at = 0.0


@pytest.mark.parametrize("down", [False, True])
async def test_what_came_with_the_handshake_stops_its_sender_too(*, down: bool) -> None:
    """A client, or a backend, that reads nothing of what the other sent early costs no more memory than later on."""
    held = frame(BINARY, b"x" * 250_000, masked=not down)
    client, backend = await side(b"" if down else held), await side(held if down else b"")
    sender, reader = (backend, client) if down else (client, backend)
    relay = Relay(client, backend, compressed=False, activity=Activity(), on_failure=lambda _: None)
    relay.start()
    try:
        assert not sender.transport.is_reading()
        assert reader.transport.is_reading()
        # It goes on when that is read.
        got = 0
        async with asyncio.timeout(HANG_SECONDS):
            while got < len(held):
                got += len(await asyncio.get_running_loop().sock_recv(reader.far, _MORE))
        await until(sender.transport.is_reading)
    finally:
        relay.abort()
        sender.far.close()
        reader.far.close()
        await relay.over.wait()
