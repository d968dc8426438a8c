"""RFC 6455's frames, one by one: what two ends see of each other directly, they see through a running sidecar.

Both ends are wsproto's. One of them sends the bytes of a case, the other behaves. Equal must be, at either end: every
message, its type and its content; the close code, and the reason if the close frame was right; the pongs that answer
pings. Where the frames of a backend break the rules, its client is told 1011 instead of a code that would blame the
client; text that is no UTF-8 passes, and the client says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import pytest

from tests.forward.sockets import (
    BINARY,
    CLOSE,
    CONT,
    DROPPED,
    PING,
    PONG,
    TEXT,
    Closed,
    Peer,
    accepting,
    close_payload,
    frame,
    opened,
    peer_of,
)
from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import Backend, Store, bearer, sidecar, someone, token
from tests.waiting import HANG_SECONDS

_AT_ONCE = 16
_BEFORE = "before"
_OVER = Closed(4000, "over")
_BROKEN = {1002, 1007}
_REASON = "reason: "
_TO_THE_CLIENT = Closed(1011, "the backend broke the protocol")


class Frame(NamedTuple):
    """The arguments of `frame`, mask aside."""

    opcode: int
    data: bytes = b""
    fin: bool = True
    rsv: int = 0


class Seen(NamedTuple):
    """What one end saw of the other."""

    messages: list[str | bytes]
    pongs: list[bytes]
    end: Closed


Cases = Mapping[str, list[Frame]]


# The cases


def _closing(code: int | None, reason: bytes = b"") -> Frame:
    return Frame(CLOSE, close_payload(code) + reason)


def _lengths() -> Cases:
    sizes = (0, 1, 125, 126, 127, 128, 65535, 65536, 300_000)
    return {f"{kind} of {size}": [Frame(kind, b"x" * size)] for kind in (TEXT, BINARY) for size in sizes} | {
        f"{kind} of {size}": [Frame(kind, b"\xff" * size)] for kind in (PING, PONG) for size in (0, 1, 124, 125, 126)
    }


def _heads() -> Cases:
    """Every first byte that a frame can have, alone and within a message."""
    every = [(opcode, fin, rsv) for opcode in range(16) for fin in (True, False) for rsv in range(8)]
    alone = {f"{head}": [Frame(head[0], b"", head[1], head[2])] for head in every}
    within = {f"{head} within": [Frame(TEXT, b"a", fin=False), *frames] for head, frames in alone.items()}
    # What is left open is finished, because a close within a message is a matter of its own.
    return {
        name: [*frames, Frame(CONT, b"z")] if _is_open(frames) else frames for name, frames in (alone | within).items()
    }


def _is_open(frames: list[Frame]) -> bool:
    is_open = False
    for each in frames:
        if each.opcode in {TEXT, BINARY, CONT}:
            is_open = not each.fin
    return is_open


def _fragments() -> Cases:
    text = "κόσμε€𝄞".encode()
    bytewise = [Frame(CONT, text[place : place + 1], fin=False) for place in range(len(text))]
    with_pings = [each for place, part in enumerate(bytewise) for each in (part, Frame(PING, b"%d" % place))]
    return {
        "byte by byte": [Frame(TEXT, fin=False), *bytewise, Frame(CONT)],
        "byte by byte, pings between": [Frame(TEXT, fin=False), *with_pings, Frame(CONT)],
        "binary in two": [Frame(BINARY, b"\xff", fin=False), Frame(CONT, b"\xfe")],
        "empty ones": [Frame(TEXT, fin=False), *[Frame(CONT, fin=False)] * 100, Frame(CONT)],
        "a thousand": [Frame(BINARY, b"x", fin=False), *[Frame(CONT, b"x", fin=False)] * 1000, Frame(CONT, b"x")],
        "ten messages": [Frame(TEXT, b"%d" % number) for number in range(10)],
        "ten pings": [Frame(PING, b"%d" % number) for number in range(10)],
    }


# Section 8.1 and RFC 3629; the sequences are those of Markus Kuhn's decoder test.
_TEXTS = {
    "the first of each length": "\0 \x80 \u0800 \U00010000".encode(),
    "the last of each length": "\x7f \u07ff \uffff \U0010ffff".encode(),
    "around the surrogates": "\ud7ff \ue000 \ufffd".encode(),
    "no characters": "\ufffe \U0001fffe \ufdd0".encode(),
    "a byte order mark": b"\xef\xbb\xbfx",
    "a lone continuation": b"\x80",
    "a continuation after": b"a\xbf",
    "two of three": b"\xe2\x82",
    "three of four": b"\xf0\x9d\x84",
    "a start, then a letter": b"\xc3a",
    "overlong slash": b"\xc0\xaf",
    "overlong slash in three": b"\xe0\x80\xaf",
    "overlong slash in four": b"\xf0\x80\x80\xaf",
    "overlong nul": b"\xc0\x80",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond unicode": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
}


def _texts() -> Cases:
    whole = {name: [Frame(TEXT, text)] for name, text in _TEXTS.items()}
    split = {
        f"{name}, cut at {place}": [Frame(TEXT, text[:place], fin=False), Frame(CONT, text[place:])]
        for name, text in _TEXTS.items()
        for place in range(1, len(text))
    }
    binary = {f"{name}, binary": [Frame(BINARY, text)] for name, text in _TEXTS.items()}
    return whole | split | binary


def _closes() -> Cases:
    # Without 1014, and from 5000 on: there wsproto is of another opinion than everybody else. Without 1002 and 1007:
    # sent by a backend that is not at fault, they pass (`tests/forward/test_websocket.py`).
    codes = [
        0,
        1,
        999,
        1000,
        1001,
        *range(1003, 1007),
        *range(1008, 1014),
        1015,
        1016,
        1100,
        2000,
        2999,
        3000,
        3999,
        4000,
        4401,
        4999,
    ]
    cases = {f"{code}": [_closing(code)] for code in codes}
    cases |= {f"{code} with a reason": [_closing(code, "é".encode() * 61)] for code in codes}
    cases |= {f"{_REASON}{name}": [_closing(1000, text)] for name, text in _TEXTS.items()}
    return cases | {
        "none": [_closing(None)],
        "one byte": [Frame(CLOSE, b"\x03")],
        "126 bytes": [_closing(1000, b"x" * 124)],
        "text behind it": [_closing(4001), Frame(TEXT, b"never")],
        "ping behind it": [_closing(4001), Frame(PING, b"never")],
        "close behind it": [_closing(4001), _closing(4002)],
    }


# The two ends


async def _conduct(peer: Peer, sent: bytes, *, closing: bool) -> Seen:
    """Sends this, and then does what RFC 6455 asks of an end until the other one has closed. With `closing` a close is
    among what was sent."""
    await peer.send(sent)
    messages: list[str | bytes] = []
    while not isinstance(got := await peer.get(), Closed):
        messages.append(got)
    with suppress(ConnectionError):
        if not closing and got != DROPPED:
            code = got.code
            await peer.put(CLOSE, close_payload(code, "" if code in _BROKEN else got.reason))
    return Seen(messages, peer.pongs if sent else [], Closed(got.code) if got.code in _BROKEN else got)


class Ends:
    """A backend that conducts the case named in the path, and what it saw."""

    def __init__(self) -> None:
        self.sends: dict[bytes, bytes] = {}
        self.seen: dict[bytes, Seen] = {}

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        sent = self.sends.get(request.target, b"")
        await connection.write(accepting(request))
        seen = await _conduct(peer_of(connection), sent, closing=bool(sent))
        connection.close()
        self.seen[request.target] = seen

    async def seen_at(self, target: bytes) -> Seen:
        async with asyncio.timeout(HANG_SECONDS):
            while target not in self.seen:  # noqa: ASYNC110 - it ends in another thread
                await asyncio.sleep(0.005)
        return self.seen[target]


class Lines(NamedTuple):
    """The backend at two URLs; `headers` are what the sidecar asks for."""

    direct: str
    proxied: str
    headers: list[tuple[str, str]]
    ends: Ends

    async def pair(self, url: str, case: str, frames: list[Frame], *, down: bool) -> tuple[Seen, Seen]:
        """What the client and the backend saw, of frames that go up, or down."""
        target = f"/{abs(hash((url, case, down)))}"
        whole = [Frame(TEXT, _BEFORE.encode()), *frames, _closing(_OVER.code, _OVER.reason.encode())]
        sent = b"".join(frame(each.opcode, each.data, fin=each.fin, rsv=each.rsv, masked=not down) for each in whole)
        if down:
            self.ends.sends[target.encode()] = sent
        async with opened(url, target, self.headers) as client:
            assert client.status == 101, client
            seen = await _conduct(client.peer, b"" if down else sent, closing=not down)
        return seen, await self.ends.seen_at(target.encode())

    async def differences(self, cases: Cases, *, down: bool) -> dict[str, object]:
        """The cases that are not alike."""
        found: dict[str, object] = {}
        limit = asyncio.Semaphore(_AT_ONCE)

        async def compare(case: str, frames: list[Frame]) -> None:
            async with limit:
                direct = await self.pair(self.direct, case, frames, down=down)
                proxied = await self.pair(self.proxied, case, frames, down=down)
            client, backend = direct
            if down and client.end.code in _BROKEN and (client.end.code == 1002 or case.startswith(_REASON)):
                direct = client._replace(end=_TO_THE_CLIENT), backend
            if proxied != direct:
                found[case] = {"direct": direct, "proxied": proxied}

        async with asyncio.TaskGroup() as group:
            for case, frames in cases.items():
                group.create_task(compare(case, frames))
        return found


@pytest.fixture(scope="module")
def lines(store: Store) -> Iterator[Lines]:
    ends = Ends()
    with Backend(ends) as backend, sidecar(backend.url, redis_url=store.url) as gate:
        yield Lines(backend.url, gate.url, [bearer(token(someone()))], ends)


# W04 (its groups 1 to 7), W06
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(
    "cases",
    [_lengths(), _heads(), _fragments(), _texts(), _closes()],
    ids=["lengths", "heads", "fragments", "texts", "closes"],
)
async def test_both_ends_see_of_each_other_what_they_see_directly(lines: Lines, cases: Cases, *, down: bool) -> None:
    assert await lines.differences(cases, down=down) == {}
