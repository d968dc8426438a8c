"""Names of the keys in the store, and the rules of the operator. Pure: nothing here calls the store.

All keys of one user lie in one hash slot, so that one script can change them. The user id is the hash tag; characters
that would cut a tag short are percent-encoded, so two users never share a key. Keys outside of that slot are indexes:
hints that a script of the user confirms (indexes.py).
"""

from __future__ import annotations

import re
import secrets
import struct
from typing import Final, Literal

import msgspec

from gatekeeper.identifiers import is_identifier, read, written

Policy = Literal["evict_idle", "evict_oldest", "reject"]

# Year 2200: in microseconds below 2^53, up to which Lua holds whole numbers exactly.
LATEST: Final = 7_258_118_400
# The store's clock and this host's may differ by this much, or by the leeway for tokens, if that is longer.
_CLOCK_TOLERANCE_SECONDS: Final = 60.0
# How long a key is kept after it is needed, because the store deletes it by its own clock, which may jump (SPARE_TIME
# in scripts/common.lua).
SPARE_SECONDS: Final = 86_400.0
_TAG: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_SESSIONS: Final = b"}:sessions"
# A reference (tokens/claims.py) that is no id alone: `h:` and a hash, or a written `sid` with its `auth_time`.
_COMPOUND: Final = re.compile(r"h:[0-9a-f]{64}|(?P<sid>[A-Za-z0-9._~+/=%-]{1,3072}):[0-9.]{1,32}")


def microseconds(seconds: float) -> int:
    """Seconds as the scripts count them, at most `LATEST`."""
    return int(min(seconds, LATEST) * 1_000_000)


def new_id() -> int:
    """A random session id, exact in Lua and in JavaScript."""
    return secrets.randbelow(2**53 - 1) + 1


def references(name: str) -> list[str]:
    """The references that a caller may mean by `name`: a reference as it is listed, or a `jti` as its provider writes
    it. Empty for a text that is neither."""
    compound = _COMPOUND.fullmatch(name)
    found = [name] if compound and (compound["sid"] is None or _is_written(compound["sid"])) else []
    if is_identifier(name):
        found.append(written(name))
    if _is_written(name):
        found.append(name)
    return list(dict.fromkeys(found))


def _is_written(text: str) -> bool:
    """Return true for the written form of an id."""
    return is_identifier(identifier := read(text)) and written(identifier) == text


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the operator, durations in seconds. `idle_seconds` and `device_limit` are None when off; `index_sids`
    keeps the index from the `sid` of a provider to its user."""

    session_seconds: float
    idle_seconds: float | None
    ended_seconds: float
    device_limit: int | None
    policy: Policy
    adopt_unknown: bool
    leeway_seconds: float
    index_sids: bool = False

    @property
    def clock_tolerance_seconds(self) -> float:
        """The difference of the store's clock and this host's up to which sessions end as idle or expired."""
        return max(_CLOCK_TOLERANCE_SECONDS, self.leeway_seconds)

    @property
    def kept_seconds(self) -> float:
        """The longest time for which a session is remembered, live and ended."""
        return self.session_seconds + self.ended_seconds

    def packed(self) -> bytes:
        """The table `rules` of the scripts (common.lua): MessagePack, durations in microseconds; before it, as three
        numbers, those that every check needs."""
        read_by_checks = map(microseconds, (self.idle_seconds or 0, self.ended_seconds, self.clock_tolerance_seconds))
        return struct.pack(">3d", *read_by_checks) + msgspec.msgpack.encode(
            {
                "idle": microseconds(self.idle_seconds or 0),
                "ttl": microseconds(self.session_seconds),
                "ended_ttl": microseconds(self.ended_seconds),
                "limit": self.device_limit or 0,
                "policy": self.policy,
                "unknown": "adopt" if self.adopt_unknown else "reject",
                "tolerance": microseconds(self.clock_tolerance_seconds),
            }
        )


class Keys:
    """Names of all keys with one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.due: Final = f"{prefix}due".encode()
        self.cleanable: Final = f"{prefix}cleanable".encode()
        self.revocation_channel: Final = f"{prefix}ends"

    def __repr__(self) -> str:
        return f"<Keys {self._prefix}*>"

    def of_user(self, user: str) -> tuple[bytes, bytes, bytes, bytes]:
        """The four keys of every script: sessions, index, not_before, outbox (common.lua)."""
        tag = self._tag(user)
        return tag + b":sessions", tag + b":index", tag + b":not_before", tag + b":outbox"

    def outbox(self, user: str) -> bytes:
        return self._tag(user) + b":outbox"

    def pairs(self, user: str) -> bytes:
        """The fifth key of `rotate.lua`."""
        return self._tag(user) + b":pairs"

    def refresh_token(self, digest: str) -> bytes:
        return f"{self._prefix}refresh:{digest}".encode()

    def learnt(self, digest: str) -> bytes:
        return f"{self._prefix}learnt:{digest}".encode()

    def sid(self, sid: str) -> bytes:
        return f"{self._prefix}sid:{written(sid)}".encode()

    def user_of(self, key: bytes) -> str | None:
        """The user of a `sessions` key; None for any other key."""
        head = f"{self._prefix}{{".encode()
        if not (key.startswith(head) and key.endswith(_SESSIONS)):
            return None
        tag = key[len(head) : -len(_SESSIONS)].decode(errors="replace")
        return tag.replace("%7D", "}").replace("%7B", "{").replace("%25", "%")

    def _tag(self, user: str) -> bytes:
        return f"{self._prefix}{{{user.translate(_TAG)}}}".encode()
