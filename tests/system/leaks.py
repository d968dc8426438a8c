"""Requests and responses that carry nonces, while clients and backend break off at random.

No byte of one may reach another party.

python -m tests.system.leaks 100000
python -m tests.system.leaks 100000 http2

With `http2` nginx is before the backend, and is asked over HTTP/2. It takes an interim response for the final one, and
may never end a request with trailers, so there are neither.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial

from tests.servers import RawClient, RawConnection, RawRequest, afetch, raw_client
from tests.system.sidecar import Backend, bearer, external_store, someone, token
from tests.system.test_direct_route import Gate, gate_before
from tests.system.test_http2 import nginx
from tests.waiting import until

_NONCE = re.compile(rb"<[0-9a-f]{16}>")
_CLIENTS = 40
_REQUESTS_A_CONNECTION = 8


class Leaked(Exception):
    """A byte has reached a party that it was not for."""


def check(nonce: bytes, received: bytes) -> None:
    if strange := set(_NONCE.findall(received)) - {nonce}:
        raise Leaked(f"{nonce!r} got {strange}")


async def pause() -> None:
    """Let others go on, for a moment of random length."""
    await asyncio.sleep(random.choice([0, 0, 0.0003, 0.002]))


def pieces(data: bytes) -> list[bytes]:
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice([0, 0, 1, 3])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def chunked(body: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(body) if part) + b"0\r\n%b\r\n" % trailer


def response(nonce: bytes, *, interim: bool) -> bytes:
    """A response of any form, with `interim` maybe after another."""
    body = nonce * random.choice([1, 1, 5, 4000])
    head = b"HTTP/1.1 200 OK\r\nX-Nonce: %b\r\n" % nonce
    form = random.randrange(6)
    if form == 0:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body)
    elif form == 1:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, b"X-T: %b\r\n" % nonce)
    elif form == 2 and interim:
        data = (
            b"HTTP/1.1 103 Early\r\nX-N: %b\r\n\r\n" % nonce + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return data


async def answering(connection: RawConnection, request: RawRequest, *, interim: bool) -> None:
    if not (nonces := request.get_all(b"x-nonce")):
        await connection.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        return
    (nonce,) = nonces
    check(nonce, request.head)
    has_body = bool(request.get_all(b"content-length") or request.get_all(b"transfer-encoding"))
    if has_body and random.random() < 0.1:
        await connection.write(b"HTTP/1.1 413 No\r\nX-N: %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % nonce)
        await connection.gone()
        return
    if has_body:
        body = await connection.body(request.head)
        if request.get_all(b"transfer-encoding"):
            # It ends before the trailers, of which there is one.
            while not body.endswith(b"\r\n\r\n"):
                body += await connection.read(1)
        check(nonce, body)
    data = response(nonce, interim=interim)
    if len(data) < 1000 and random.random() < 0.05:
        # Once more, for no one. In one piece: what a backend sends after it got another request cannot be told from the
        # response to that.
        await connection.write(data * 2)
        return
    for part in pieces(data):
        if random.random() < 0.06:
            # The other side may have closed it already.
            with suppress(OSError):
                connection.reset() if random.random() < 0.5 else connection.close()
            return
        await connection.write(part)
        await pause()


def leave(client: RawClient) -> None:
    # The other side may have closed it already.
    with suppress(OSError):
        client.reset()


async def read_response(client: RawClient, nonce: bytes, seen: Counter[str]) -> bool:
    """Read one response, and check it. Returns False where it broke off or the connection ends."""
    received = b""
    reader = client.reader
    try:
        while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 1"):
            check(nonce, head)
        received += head
        lines = head.lower()
        body = b""
        if b"\r\ntransfer-encoding: chunked" in lines:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif found := re.search(rb"\r\ncontent-length: (\d+)", lines):
            body = await reader.readexactly(int(found[1]))
        received += body
        status = head[9:12].decode()
        if status == "200" and body.replace(nonce, b""):
            raise Leaked(f"{nonce!r} got a response that is not its own")
        seen[status] += 1
        return b"\r\nconnection: close" not in lines
    except asyncio.IncompleteReadError as error:
        received += error.partial
        seen["cut"] += 1
    except ConnectionError:
        seen["reset"] += 1
    finally:
        check(nonce, received)
    return False


async def talk(gate: Gate, tokens: list[str], seen: Counter[str], *, trailers: bool) -> None:
    """One connection of a client, until it leaves or is left."""
    async with raw_client(gate.url) as client:
        for _ in range(random.randrange(1, _REQUESTS_A_CONNECTION)):
            nonce = b"<%016x>" % random.getrandbits(64)
            body = nonce * random.choice([1, 10, 5000])
            head = b"%b /%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nX-Nonce: %b\r\n"
            mine = random.choice(tokens).encode()
            form = random.randrange(4)
            method = b"POST" if form > 1 else b"GET"
            data = head % (method, nonce.strip(b"<>"), mine, nonce)
            if form == 2:
                data += b"Content-Length: %d\r\n\r\n" % len(body) + body
            elif form == 3:
                data += b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, b"X-T: %b\r\n" % nonce * trailers)
            else:
                data += b"\r\n"
            seen["asked"] += 1
            try:
                for part in pieces(data):
                    if random.random() < 0.04:
                        leave(client)
                        return
                    await client.send(part)
                    await pause()
            except ConnectionError:
                # Refused early: the response may still be there.
                seen["stopped"] += 1
            if random.random() < 0.05:
                leave(client)
                return
            if not await read_response(client, nonce, seen):
                return


async def run(number: int, *, http2: bool = False) -> Counter[str]:
    """Ask so many times, and return what came of it. Raises Leaked."""
    seen: Counter[str] = Counter()
    with ExitStack() as held:
        store = held.enter_context(external_store())
        url = held.enter_context(Backend(partial(answering, interim=not http2), read_bodies=False)).url
        if http2:
            url = held.enter_context(nginx(url)).plain
        version = "prior" if http2 else "off"
        gate = held.enter_context(gate_before(url, store, device_limit="off", upstream_http2=version))
        tokens = [token(someone()) for _ in range(20)]

        async def keep_talking() -> None:
            while seen["asked"] < number:
                if random.random() < 0.01:
                    # A session ends under its requests, and another token is new.
                    place = random.randrange(len(tokens))
                    await afetch(gate.url, "DELETE", "/sessions/logout", [bearer(tokens[place])])
                    tokens[place] = token(someone())
                await talk(gate, tokens, seen, trailers=not http2)

        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(keep_talking())
        seen["direct"] = sum(gate.taken)
        # Those that were left, and are counted in batches.
        await until(lambda: gate.engine.telemetry.metrics._open == {True: 0, False: 0})
    return seen


if __name__ == "__main__":
    print(asyncio.run(run(int(sys.argv[1]), http2="http2" in sys.argv)))
