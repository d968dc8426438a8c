"""Connections and requests are gone when they are over: none waits for the collector of cycles."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from tests.servers import RawClient, afetch, raw_client
from tests.system.sidecar import Backend, Store, bearer, eventually, someone, token
from tests.system.test_direct_route import answering, gate_before

_PATHS = ("/length", "/chunked", "/204", "/reset", "/cut-length", "/cut-chunks", "/bad", "/close", "/1.0")
_ROOMS = ("gatekeeper.server.", "gatekeeper.forward.", "gatekeeper.upstream.", "gatekeeper.http.", "uvloop.")


async def test_what_is_over_does_not_wait_for_the_collector(store: Store) -> None:
    with Backend(answering, read_bodies=False) as backend, gate_before(backend.url, store) as gate:
        mine = token(someone())
        await afetch(gate.url, "GET", "/", [bearer(mine)])
        began = len(gate.taken)

        async def ask(client: RawClient, path: str, lines: str = "", body: bytes = b"") -> None:
            method = "POST" if lines else "GET"
            head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {mine}\r\n{lines}\r\n"
            await client.send(head.encode() + body)

        async def everything() -> None:
            for path in _PATHS:
                async with raw_client(gate.url) as client:
                    await ask(client, path)
                    await client.until(b"\r\n\r\n")
            for path in ("/silent", "/large"):
                async with raw_client(gate.url) as client:
                    asked = len(backend.raw)
                    await ask(client, path)
                    await asyncio.to_thread(eventually, lambda: len(backend.raw) > asked)  # noqa: B023
                    client.reset()
            uploads = {"Content-Length: 300000\r\n": b"abc", "Transfer-Encoding: chunked\r\n": b"3\r\nabc\r\n"}
            for lines, body in uploads.items():
                async with raw_client(gate.url) as client:
                    asked = len(backend.raw)
                    await ask(client, "/silent", lines, body)
                    await asyncio.to_thread(eventually, lambda: len(backend.raw) > asked)  # noqa: B023
                    client.reset()
            await asyncio.to_thread(eventually, lambda: not len(gate.engine.streams))
            # For connections that are over with their last request.
            await asyncio.sleep(0.2)

        await everything()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await everything()
            gc.collect()
            kinds = [f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert len(gate.taken) > began
        assert Counter(kind for kind in kinds if kind.startswith(_ROOMS)) == {}
