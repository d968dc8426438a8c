"""Packed user agents: every one is restored, and garbled ones are refused cheaply."""

from __future__ import annotations

import hashlib
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Client, EndReason
from gatekeeper.sessions.audit_event import printable
from gatekeeper.sessions.user_agents import DICTIONARY, MARK, MOST_CHARACTERS, packed, unpacked
from tests.conftest import MakeStore
from tests.sessions.by_hand import CHROME, CLIENT, Hand, token
from tests.sessions.test_device import every_agent


def deflated(text: bytes, *, dictionary: bytes = b"") -> bytes:
    deflate = zlib.compressobj(9, wbits=-15, zdict=dictionary)
    return MARK + deflate.compress(text) + deflate.flush()


@pytest.mark.slow
def test_every_agent_of_the_fixtures_comes_back_and_takes_no_more_than_it_is_long() -> None:
    before = after = 0
    for agent in (printable(agent, MOST_CHARACTERS) for agent in every_agent()):
        kept = packed(agent)
        assert unpacked(kept) == agent
        assert len(kept) <= len(agent.encode())
        before, after = before + len(agent.encode()), after + len(kept)
    # They are those of old and of rare devices; today's take less (test_bytes.py).
    assert after < 0.6 * before


@given(st.text(max_size=MOST_CHARACTERS))
def test_whatever_the_text_is_it_comes_back(agent: str) -> None:
    assert unpacked(packed(agent)) == agent
    assert unpacked(packed(MARK.decode() + agent[1:])) == MARK.decode() + agent[1:]


@given(st.binary(max_size=600))
def test_whatever_a_header_holds_comes_back_as_a_list_shows_it(header: bytes) -> None:
    agent = printable(header.decode("latin-1"), MOST_CHARACTERS)
    assert unpacked(packed(agent)) == agent


@given(st.lists(st.sampled_from([*DICTIONARY.decode().split(" "), " ", "(", ")", "x"]), max_size=40))
def test_what_looks_like_a_browser_comes_back_too(parts: list[str]) -> None:
    agent = " ".join(parts)[:MOST_CHARACTERS]
    assert unpacked(packed(agent)) == agent


@pytest.mark.parametrize("character", ["x", "é", "語", "😀"])
def test_the_longest_agent_comes_back(character: str) -> None:
    assert unpacked(packed(character * MOST_CHARACTERS)) == character * MOST_CHARACTERS


@pytest.mark.parametrize("agent", ["", "x", "curl", "q0ZjX 9w/K7 vB3", "語"])
def test_what_packing_does_not_make_shorter_stays_text(agent: str) -> None:
    assert packed(agent) == agent.encode()


def test_what_has_been_stored_is_read() -> None:
    # The dictionary is part of the format.
    assert hashlib.sha256(DICTIONARY).hexdigest() == "91741dbe318f1f8afca3fa2dd16595945a8308f8f2397d6405ab9f7de072181c"
    assert unpacked(bytes.fromhex("01a399a54666d86c0500")) == CHROME
    assert unpacked(CHROME.encode()) == CHROME


BOMB = deflated(b"x" * 20_000_000)
GARBLED = {
    "nothing after the mark": MARK,
    "no deflate": MARK + b"\xff" * 10,
    "cut short": packed(CHROME)[:-1],
    "more than one": packed(CHROME) + b"x",
    "of a longer dictionary": deflated(CHROME.encode(), dictionary=CHROME.encode() + bytes(10_000)),
    "one character too many": deflated(b"x" * (4 * MOST_CHARACTERS + 1)),
    "a bomb": BOMB,
    "no text within": deflated(b"\xff\xfe"),
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("kept", GARBLED.values(), ids=GARBLED.keys())
def test_what_is_garbled_is_no_agent(kept: bytes) -> None:
    # C07
    with pytest.raises(ValueError, match=r"garbled|codec"):
        unpacked(kept)


@given(st.binary(max_size=200))
def test_whatever_stands_in_the_store_is_an_agent_of_bounded_length_or_refused(garbage: bytes) -> None:
    # C07
    for kept in (MARK + garbage, MARK + packed(CHROME)[1:6] + garbage):
        try:
            agent = unpacked(kept)
        except ValueError:
            continue
        assert len(agent) <= 4 * MOST_CHARACTERS


def test_what_unpacks_without_end_takes_no_memory() -> None:
    # C07
    assert len(BOMB) < 25_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="garbled"):
            unpacked(BOMB)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Its own copy, the dictionary and 2 KiB.
    assert most < 200_000


@pytest.mark.parametrize(
    "header",
    [
        bytes(range(256)),
        CHROME.encode(),
        b"",
        b"\x01" + CHROME.encode(),
        "語😀é".encode() * 40,
        b"x" * 600,
        b"\xff" * 31,
    ],
)
async def test_the_list_shows_what_the_header_held(make_store: MakeStore, header: bytes) -> None:
    # Among them a string of each form that MessagePack has.
    store, sent = make_store(), header.decode("latin-1")
    await store.check(token("a"), Client(ip_address="203.0.113.9", user_agent=sent))
    [listed] = await store.sessions("74")
    assert listed.user_agent == printable(sent, MOST_CHARACTERS)
    found = await store.find("74", "a")
    ended = await store.end("74", listed.id, EndReason.DEACTIVATED)
    assert found is not None
    assert ended is not None
    assert found.user_agent == ended.user_agent == listed.user_agent


async def test_an_agent_can_be_read_by_hand(make_store: MakeStore, hand: Hand) -> None:
    # As docs/operations.md has it.
    session_id = (await make_store().check(token("a"), CLIENT)).session_id
    script = "return cmsgpack.unpack(string.sub(redis.call('HGET', KEYS[1], ARGV[1]), 26))"
    record: Any = hand.redis.eval(script, 1, "gk:{74}:sessions", str(session_id))
    assert len(record) == 14
    assert record[10] != CHROME.encode()
    assert unpacked(record[10]) == CHROME


async def test_a_record_by_which_it_was_logged_out_unseen_is_read_too(make_store: MakeStore) -> None:
    store = make_store()
    await store.log_out(token("a"), CLIENT)
    [listed] = await store.sessions("74", include_inactive=True)
    assert listed.user_agent == CHROME


@pytest.mark.parametrize("value", [*GARBLED.values(), 7, -1, 1e300, "x" * 70_000], ids=lambda value: repr(value)[:20])
async def test_a_garbled_agent_is_in_nobodys_list_and_in_no_requests_way(
    make_store: MakeStore, hand: Hand, value: bytes | float | str
) -> None:
    # C07, R19
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    hand.write(session_id, "user_agent", value)
    with pytest.raises(StoreUnavailable):
        await store.sessions("74")
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    assert await store.end_all("74", EndReason.REVOKED_BY_USER) == 1
    assert (await store.check(token("a"), CLIENT)).outcome == "ended"
