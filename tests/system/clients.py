"""Many requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit


async def status_of(url: str, token: str, path: str = "/", method: str = "GET") -> int:
    """The status of one request on a connection of its own."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1])


async def statuses(requests: Iterable[tuple[str, str]]) -> list[int]:
    """The statuses of requests that are all sent at once: (url, token) each."""
    return await asyncio.gather(*(status_of(url, token) for url, token in requests))
