"""A server of key sets that a test controls, and helpers that verify tokens with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens.keys import JwksKeys
from gatekeeper.tokens.verifier import Verifier
from tests.tokens import forge

ALLOWED = ["RS256", "ES256", "EdDSA"]


class Source:
    """An HTTP server of one resource. The test sets the response; the server counts the requests."""

    def __init__(self) -> None:
        self.asked = 0
        self.heads: list[bytes] = []
        self.body = b""
        self.head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
        self.declared: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""
        self.connections: set[asyncio.Task[Any] | None] = set()

    def publish(self, *keys: Any) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            self.asked += 1
            await self.gate.wait()
            length = len(self.body) if self.declared is None else self.declared
            writer.write(self.head + b"content-length: %d\r\nconnection: close\r\n\r\n" % length + self.body)
            await writer.drain()
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def judge(keys: JwksKeys) -> Verifier:
    return forge.verifier(keys, algorithms=ALLOWED)


async def admits(keys: JwksKeys, token: str) -> bool:
    try:
        await judge(keys).verify(token)
    except TokenRejected:
        return False
    return True
