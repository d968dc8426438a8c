"""A WebSocket echo, as a process of its own that can be killed. `/silent` answers no handshake, `/deaf` reads no frame,
`/push` sends 64 kB messages for ever."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response


async def delay(_: ServerConnection, request: Request) -> Response | None:
    if request.path == "/silent":
        await asyncio.sleep(3600)
    return None if "Upgrade" in request.headers else Response(HTTPStatus.OK, "OK", request.headers.__class__(), b"")


async def talk(peer: ServerConnection) -> None:
    assert peer.request is not None
    if peer.request.path == "/deaf":
        await asyncio.sleep(3600)
    while peer.request.path == "/push":
        await peer.send(b"x" * 65536)
    async for message in peer:
        await peer.send(message)


async def main() -> None:
    # Peers that break off are what it is for.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    settings = {"compression": None, "ping_interval": None, "max_size": None, "max_queue": 1}
    async with serve(talk, "127.0.0.1", 0, process_request=delay, **settings) as server:  # type: ignore[arg-type]
        print(f"running on http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
