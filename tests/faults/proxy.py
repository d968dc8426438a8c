"""A TCP proxy before the store that does what networks do: late replies, cuts, resets, garbage, silence."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.waiting import HANG_SECONDS


class FaultProxy:
    """Listens on loopback and forwards to a Unix socket, in a thread with a loop of its own.

    What it does to replies is in its attributes, which may be set at any time: `latency` (seconds before each piece),
    `drop` (they vanish; requests still arrive), `drop_requests` (those vanish instead), `cut_after` (bytes of each new
    connection after which it is closed), `reset_every` (each n-th piece resets its connection), `flip` (each n-th piece
    has a byte changed), `push` (a RESP3 push message comes first).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.connections = 0
        self.calm()

    def calm(self) -> None:
        """Everything passes as it comes."""
        self.latency, self.drop, self.drop_requests, self.refuse = 0.0, False, False, False
        self.cut_after, self.reset_every, self.flip, self.push, self._pieces = 0, 0, 0, False, 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(HANG_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(HANG_SECONDS)

    async def _live(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._over.wait()
        server.close()
        self._reset_all()

    def reset_all(self) -> None:
        """Every connection ends with RST."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.refuse:
                _reset(writer)
                return
            store_reader, store_writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            writer.close()
            return
        self._writers.add(writer)
        try:
            await asyncio.gather(self._requests(reader, store_writer), self._replies(store_reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            store_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, store: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.drop_requests:
                store.write(data)
        with suppress(OSError):
            store.write_eof()

    async def _replies(self, store: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while data := await store.read(65536):
            self._pieces += 1
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.drop:
                continue
            if self.reset_every and self._pieces % self.reset_every == 0:
                _reset(writer)
                return
            if self.flip and self._pieces % self.flip == 0:
                middle = len(data) // 2
                data = data[:middle] + bytes((data[middle] ^ 0x55,)) + data[middle + 1 :]
            if self.push:
                data = b">2\r\n+invalidate\r\n*0\r\n" + data
            if self.cut_after and sent + len(data) >= self.cut_after:
                writer.write(data[: self.cut_after - sent])
                writer.close()
                return
            sent += len(data)
            writer.write(data)
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
