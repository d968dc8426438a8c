"""The check of what is plain (touch.lua) against the law (check.lua), on states of every kind: where the first decides,
the second decides the same and writes the same; where it does not, it has written nothing."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper.sessions.scripts import load
from tests.sessions.by_hand import Hand

# The store's clock, which stands still in these tests.
NOW = 1_900_000_000_000_000
IDLE, TOLERANCE, HOUR = 1_000_000_000, 60_000_000, 3_600_000_000
NAN, INFINITE, GARBLED = float("nan"), float("inf"), 2.0**53 + 2
USERS = ("one", "other")

_FROZEN = """
local function %s(KEYS, ARGV, clock)
  local redis = setmetatable({call = function(name, ...)
    if name == 'TIME' then return clock end
    return redis.call(name, ...)
  end}, {__index = redis})
  %s
end
"""
_PLAIN = load("touch").source + " do return {'left to the law'} end"
_LAW = load("audit", "common", "check", "upkeep", "opening", "adopt").source
_BOTH = f"""
{_FROZEN % ("plain", _PLAIN)}
{_FROZEN % ("law", _LAW)}
local arguments, clock = {{unpack(ARGV, 3)}}, {{ARGV[1], ARGV[2]}}
local of_one, of_other = {{unpack(KEYS, 1, 4)}}, {{unpack(KEYS, 5, 8)}}
local succeeded, reply = pcall(plain, of_one, arguments, clock)
local lawful, lawful_reply = pcall(law, of_other, arguments, clock)
return {{succeeded and 1 or 0, succeeded and reply or {{}}, lawful and 1 or 0, lawful and lawful_reply or {{}}}}
"""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it is stored; what is not given is that of one that is plainly live."""

    created_at: float = NOW - HOUR
    expires_at: float = NOW + HOUR
    token_expires_at: float = NOW + HOUR
    exempt: int = 0
    is_ended: bool = False
    has_earlier: bool = False
    score: float | None = NOW - 5_000_000
    reference: str = "a"

    def packed(self) -> bytes:
        rest: list[Any] = [NOW - 1 if self.is_ended else 0, "logged_out" if self.is_ended else "", 0, 0, 0]
        rest += [self.reference, True, "token", "", "", "", "", "", ""]
        if self.has_earlier:
            rest.append([self.reference, NOW - HOUR, "77", "idle", NOW + HOUR])
        flags = self.exempt + 2 * self.is_ended + 4 * self.has_earlier
        head = struct.pack(">dddB", self.created_at, self.expires_at, self.token_expires_at, flags)
        return head + msgspec.msgpack.encode(rest)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a user has in the store, the session that is asked for first, and what a check comes with."""

    sessions: tuple[Stored, ...] = (Stored(),)
    named: str = "1"
    is_in_key: bool = False
    before_entries: bytes = b""
    not_before: bytes | None = None
    idle: int = IDLE
    token_expires_at: int = NOW + HOUR
    exempt: int = 0
    host: int = NOW

    def write(self, hand: Hand, user: str) -> None:
        sessions, index, not_before = hand.keys(user)
        scores = {str(number): each.score for number, each in enumerate(self.sessions, 1) if each.score is not None}
        entries = b"key" if self.is_in_key else b"".join(struct.pack(">dd", int(k), v) for k, v in scores.items())
        fields: dict[Any, Any] = {str(number): each.packed() for number, each in enumerate(self.sessions, 1)}
        fields |= {"r:a": self.named.encode(), "i": self.before_entries + entries}
        if self.not_before is not None:
            fields["b"] = self.not_before
            hand.redis.set(not_before, self.not_before)
        hand.redis.hset(sessions, mapping=fields)
        if self.is_in_key and any(score == score for score in scores.values()):
            hand.redis.zadd(index, {number: score for number, score in scores.items() if score == score})

    def judged(self, hand: Hand) -> tuple[Any, Any]:
        """Returns the replies of touch.lua and of the law, each for a user of its own."""
        hand.redis.flushall()
        keys = []
        for user in USERS:
            self.write(hand, user)
            keys += [*hand.keys(user), f"gk:{{{user}}}:outbox"]
        rules = struct.pack(">3d", self.idle, HOUR, TOLERANCE)
        rules += msgspec.msgpack.encode(
            {
                "idle": self.idle,
                "ttl": HOUR,
                "ended_ttl": HOUR,
                "limit": 3,
                "policy": "evict_idle",
                "unknown": "adopt",
                "tolerance": TOLERANCE,
            }
        )
        clock, issued_at = divmod(NOW, 1_000_000), NOW - HOUR
        arguments = (
            rules,
            "a",
            "a",
            issued_at,
            self.token_expires_at,
            self.exempt,
            b"%010d" % (self.host // 1_000_000),
        )
        plain_ok, plain, law_ok, law = hand.redis.eval(_BOTH, 8, *keys, *clock, *arguments)
        return (plain[1:] if plain_ok else "error") or None, law[1:] if law_ok else "error"


def stored(hand: Hand, user: str) -> list[Any]:
    sessions, index, not_before = hand.keys(user)
    outbox: Any = hand.redis.lrange(f"gk:{{{user}}}:outbox", 0, -1)
    kept = hand.redis.zrange(index, 0, -1, withscores=True) if hand.redis.type(index) == b"zset" else None
    lives = [hand.redis.ttl(key) for key in (sessions, index)]
    return [hand.redis.hgetall(sessions), kept, lives, hand.redis.get(not_before), outbox]


_AROUND_NOW: tuple[float, ...] = (NOW - 1, NOW, NOW + 1, -1, 0, NAN, INFINITE, -INFINITE, GARBLED)
# Ways in which a state is not as usual: of the session that is asked for, and of the rest.
OF_SESSION: dict[str, tuple[Any, ...]] = {
    "created_at": (*_AROUND_NOW, NOW - IDLE),
    "expires_at": _AROUND_NOW,
    "token_expires_at": (*_AROUND_NOW, NOW + HOUR - 1, NOW + HOUR + 1),
    "exempt": (1, 8, 128),
    "is_ended": (True,),
    "has_earlier": (True,),
    "score": (*_AROUND_NOW, NOW - IDLE, NOW - IDLE - 1, NOW - IDLE + 1, NOW + 61_000_000, -NOW, None),
}
OF_STATE: dict[str, tuple[Any, ...]] = {
    "named": ("2", "3", "i", "b", "0x1", "", "x"),
    "is_in_key": (True,),
    # An entry, half an entry, what looks like the one that is asked for in the wrong place, and what is none.
    "before_entries": (*(struct.pack(">dd", 9, score) for score in (NOW, 1.0)), struct.pack(">d", 1.0), b"\0" * 5),
    "not_before": (
        *(b"%d 0 revoked_by_user" % at for at in (NOW - HOUR - 1, NOW - HOUR, NOW - HOUR + 1)),
        *(b"%d 1 revoked_by_user" % at for at in (NOW - HOUR - 1, NOW - 1)),
        *(b"%d 9 revoked_by_user" % at for at in (NOW - HOUR - 1, NOW - 1)),
        b"%d 0 revoked_by_user %d" % (NOW - HOUR - 1, NOW),
        *(b"", b"x", b"1", b"-1 0 idle", b"1 0 revoked_by_user\n", b"9" * 400),
    ),
    "idle": (0,),
    "token_expires_at": (NOW + HOUR - 1, NOW + HOUR + 1),
    "exempt": (1,),
    "host": (NOW + TOLERANCE, NOW - TOLERANCE, NOW + TOLERANCE + 1_000_000, NOW - TOLERANCE - 1_000_000),
}
OTHERS = (Stored(reference="b", created_at=NOW - 2 * HOUR), Stored(reference="c", is_ended=True, score=-NOW))
Change = tuple[bool, str, Any]
CHANGES: list[Change] = [
    (of_session, name, value)
    for of_session, fields in ((True, OF_SESSION), (False, OF_STATE))
    for name, values in fields.items()
    for value in values
]


def changed(changes: Sequence[Change]) -> State:
    asked = Stored(**{name: value for of_session, name, value in changes if of_session})
    rest = {name: value for of_session, name, value in changes if not of_session}
    return State(sessions=(asked, *OTHERS), **rest)


def compare(hand: Hand, state: State) -> str:
    """Who decided: touch.lua ('plain'), or the law, to which it left the state as it was ('left', 'error')."""
    plain, lawful = state.judged(hand)
    one, other = (stored(hand, user) for user in USERS)
    if plain is not None and plain != "error":
        assert plain == lawful == [b"touched", state.named.encode(), b"", 0]
        assert one == other
        return "plain"
    assert plain is None or lawful == "error"
    hand.redis.flushall()
    state.write(hand, USERS[0])
    assert one == stored(hand, USERS[0])
    return "left" if plain is None else "error"


def test_whatever_is_unusual_is_decided_as_by_the_law(hand: Hand) -> None:
    decided = Counter(compare(hand, changed([change])) for change in CHANGES)
    assert decided["plain"] > 5, decided
    assert decided["left"] > 30, decided


@pytest.mark.parametrize("examples", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_what_is_plain_is_what_the_law_says(hand: Hand, examples: int) -> None:
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(CHANGES), min_size=2, max_size=4))
    def compare_all(changes: list[Change]) -> None:
        compare(hand, changed(changes))

    compare_all()


@pytest.mark.parametrize(
    "state",
    [
        # The store's clock was put back, and the host's is another: neither may judge.
        State(sessions=(Stored(score=NOW + 61_000_000, expires_at=NOW + 10),), host=NOW + 2 * TOLERANCE),
        State(sessions=(Stored(created_at=-1),), not_before=b"9 1 idle"),
        State(sessions=(Stored(score=-NOW),), idle=0),
    ],
)
def test_what_is_rare_is_left_to_the_law(hand: Hand, state: State) -> None:
    assert compare(hand, state) == "left"
    assert state.judged(hand)[1] != [b"touched", b"1", b"", 0]


@pytest.mark.parametrize(
    "state",
    [
        State(sessions=(Stored(),) * 32),
        State(sessions=(Stored(exempt=1, score=1.0),), exempt=1),
        State(sessions=(Stored(score=1.0),), idle=0),
        State(token_expires_at=NOW),
        State(not_before=b"%d 0 revoked_by_user" % (NOW - HOUR - 1)),
        State(not_before=b"%d 1 revoked_by_user" % (NOW - 1)),
        State(host=NOW - 2 * TOLERANCE),
        State(host=NOW + 2 * TOLERANCE),
    ],
)
def test_what_is_common_is_plain(hand: Hand, state: State) -> None:
    assert state.judged(hand)[0] is not None
