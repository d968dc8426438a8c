"""Packs user agents for the record of a session: raw deflate (RFC 1951) with a dictionary of common agents.

An agent would be half of a record, and is kept whole, because device.py reads it anew at every listing. It repeats
little of itself but much of other agents, so 120 bytes of Chrome, Safari or Firefox become 6 to 25. That takes about
13 µs when a session opens, and 2 µs when it is listed; a touch does not need it.

By hand: `agents.unpacked(kept)`, or `zlib.decompressobj(-15, zdict=DICTIONARY).decompress(kept[1:])` after a `MARK`.
"""

from __future__ import annotations

import zlib
from typing import Final

# Longer than the agent of any browser; the rest is cut off.
MOST_CHARACTERS: Final = 512
_MOST_BYTES: Final = 4 * MOST_CHARACTERS

# The first byte of a packed agent. Printable text begins with no control character, so it needs no mark.
MARK: Final = b"\x01"

# Part of the format of records: raw deflate does not notice another dictionary. A better one gets a mark of its own,
# beside this one. The most common texts stand last, where a reference to them takes the fewest bits.
DICTIONARY: Final = "".join((
    "python-requests/2.PostmanRuntime/7.Go-http-client/2.0curl/8.okhttp/4.12.0 (dart:io)Dart/3.",
    "Dalvik/2.1.0 (Linux; U; Android CFNetwork/1498.0 Darwin/24.0.0 Alamofire/5.",
    "Mozilla/5.0 (compatible; bot/2.1; +http://www..com/bot.html)",
    "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko",
    " Electron/3 OPR/1 Vivaldi/7. YaBrowser/2 HeadlessChrome/",
    "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0",
    "Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)",
    " FxiOS/14 EdgiOS/13 GSA/3 CriOS/138.0.7",
    "Mozilla/5.0 (Linux; Android 14; SM-A5 Build/UP1A.23; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0",
    " Chrome/1",
    "Mozilla/5.0 (Linux; Android 13; SM-S9) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/28.0 Chrome/1",
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)",
    " Version/18.5 Safari/605.1.15",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)",
    " Version/18.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)",
    " Chrome/14.0.0.0 Safari/537.36 Edg/14",
)).encode()  # fmt: skip

# 8 KiB hold the dictionary and an agent; the usual 32 KiB would be allocated for each.
_WINDOW: Final = -13


def packed(agent: str) -> bytes:
    """Packs an agent of at most `MOST_CHARACTERS`, where that is shorter."""
    text = agent.encode()
    deflate = zlib.compressobj(9, wbits=_WINDOW, zdict=DICTIONARY)
    short = MARK + deflate.compress(text) + deflate.flush()
    return short if len(short) < len(text) or text.startswith(MARK) else text


def unpacked(kept: bytes) -> str:
    """Unpacks an agent. Raises `ValueError` for bytes that `packed` does not return."""
    if not kept.startswith(MARK):
        return kept.decode()
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        # One byte more than allowed: a longer text is not inflated any further, and is refused below.
        text = inflate.decompress(kept[1:], _MOST_BYTES + 1)
    except zlib.error:
        raise ValueError("a user agent is garbled") from None
    if not inflate.eof or inflate.unused_data or len(text) > _MOST_BYTES:
        raise ValueError("a user agent is garbled")
    return text.decode()
