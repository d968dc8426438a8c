"""A backend that knows one user, `known`, whose password is `right`; all else is 401. With a second argument it takes
so many milliseconds longer for that user, as one does that hashes no password of an unknown one.

`python -m bench.passwords PORT [MILLISECONDS]`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import uvloop

_JSON: Final = b"Content-Type: application/json\r\nContent-Length: "
_RIGHT: Final = b"HTTP/1.1 200 OK\r\n" + _JSON + b'14\r\n\r\n{"id":"known"}'
_WRONG: Final = b"HTTP/1.1 401 Unauthorized\r\n" + _JSON + b"2\r\n\r\n{}"


async def serve(port: int, longer_seconds: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if b'"known"' in body and longer_seconds:
                    await asyncio.sleep(longer_seconds)
                writer.write(_RIGHT if b'"right"' in body else _WRONG)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


def main(port: str, milliseconds: str = "0") -> None:
    uvloop.run(serve(int(port), float(milliseconds) / 1000))


if __name__ == "__main__":
    main(*sys.argv[1:])
