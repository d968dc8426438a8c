"""Sessions in the store: what can be asked of it, in terms of the engine. The law is in `scripts/common.lua`.

Everything of one user lies in three keys of one hash slot. The user id is the hash tag, with the characters that would
cut a tag short percent-encoded, so two users never share a key, whatever their names are.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.geo import Locator, Nowhere
from gatekeeper.models import Claims, Client, EndReason, Location, Session
from gatekeeper.sessions.connection import Script, Scripts, load_script
from gatekeeper.sessions.device import device_of, hints_of

CHECK: Final = load_script("check")
LIST: Final = load_script("list")
END: Final = load_script("end")
END_ALL: Final = load_script("end_all")
LOGOUT: Final = load_script("logout")
CLEAN_UP: Final = load_script("clean_up")

Word = Literal["touched", "opened", "ended", "unknown", "full", "absent"]
T = TypeVar("T")
Policy = Literal["evict_idle", "evict_oldest", "reject"]

# Numbers stay exact in Lua up to 2^53: year 9999 in microseconds is above it, year 2200 is not.
_LATEST: Final = 7_258_118_400
_USER_AGENT_CHARACTERS: Final = 512
# Tokens that this process has seen pass: for them nothing is sent that only an opening needs.
_KNOWN_TOKENS: Final = 100_000
_USERS_A_STEP: Final = 100


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decided. Seconds; `idle_seconds` and `device_limit` are None when off."""

    session_seconds: float
    idle_seconds: float | None
    ended_seconds: float
    device_limit: int | None
    policy: Policy
    adopt_unknown: bool
    leeway_seconds: float


class Checked(msgspec.Struct, frozen=True):
    """The answer to a check: `word`, the session's id (0 where there is none), how it ended, how many it evicted."""

    word: Word
    session_id: int
    end_reason: EndReason | None
    evicted: int


_ABSENT: Final = Checked("absent", 0, None, 0)


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """A record as the scripts pack it; the order is that of `common.lua`."""

    created_at: int
    expires_at: int
    token_expires_at: int
    exempt: int
    ended_at: int
    end_reason: str
    hidden: int
    last_activity: int
    reference: str
    jti: str
    login_method: str
    ip_address: str
    user_agent: str
    hints: str
    city: str
    country: str


_decode_record = msgspec.msgpack.Decoder(_Record).decode
_TAG: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _printable(text: str, length: int) -> str:
    """Without control characters, and not longer than anybody needs."""
    return "".join(character for character in text[: 4 * length] if character.isprintable())[:length]


class SessionStore:
    """One implementation over the Redis protocol. Every method raises `StoreUnavailable` and nothing else."""

    def __init__(self, scripts: Scripts, *, key_prefix: str, rules: Rules, locator: Locator | None = None) -> None:
        self._scripts = scripts
        self._prefix = key_prefix
        self._rules = rules
        self._locator = locator or Nowhere()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Users by the instant at which their next session may be over: a hint for clean_up(), never a fact.
        self._due_key = f"{key_prefix}due".encode()
        self._idle = _microseconds(rules.idle_seconds or 0)
        self._ended_ttl = _microseconds(rules.ended_seconds)
        # The part of a check that does not depend on the request.
        self._settled = (
            self._idle,
            _microseconds(rules.session_seconds),
            self._ended_ttl,
            rules.device_limit or 0,
            rules.policy,
            "adopt" if rules.adopt_unknown else "reject",
        )

    def __repr__(self) -> str:
        return f"<SessionStore [{self._prefix}*] {self._scripts!r}>"

    def _keys(self, user: str) -> tuple[bytes, bytes, bytes]:
        tag = f"{self._prefix}{{{user.translate(_TAG)}}}".encode()
        return tag + b":sessions", tag + b":index", tag + b":not_before"

    async def _run(self, script: Script, user: str, read: Callable[[list[Any]], T], *arguments: Any) -> T:
        keys = self._keys(user)
        reply = await self._scripts.run(script, keys, arguments)
        # A reply that is not this user's is a fault of the connection, whatever it says.
        if not isinstance(reply, list) or not reply or reply[0] != keys[0]:
            raise StoreUnavailable("the session store answered for somebody else", kind="protocol")
        try:
            return read(reply)
        except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol") from None

    def _token_expires_at(self, claims: Claims) -> int:
        return _microseconds(min(claims.expires_at + self._rules.leeway_seconds, _LATEST))

    async def check(
        self, claims: Claims, client: Client, *, exempt: bool = False, login_method: str = "token"
    ) -> Checked:
        """Finds the session of a verified token, judges and touches it, or opens one: one atomic script."""
        token = (claims.user, claims.reference)
        arguments = (
            claims.reference,
            claims.jti or "",
            _microseconds(min(claims.issued_at or 0, _LATEST)),
            self._token_expires_at(claims),
            *self._settled,
            secrets.randbelow(2**53 - 1) + 1,
            int(exempt),
        )
        checked = _ABSENT
        if token in self._known:
            self._known.move_to_end(token)
            checked = await self._run(CHECK, claims.user, _checked, *arguments)
        if checked.word == "absent":
            # In this order, and in one round trip: the index is written before the record.
            hint = self._hint(claims.user)
            opening = self._run(CHECK, claims.user, _checked, *arguments, login_method, *self._particulars(client))
            _, checked = await asyncio.gather(hint, opening)
        if checked.word in {"touched", "opened"}:
            self._remember(token)
        return checked

    async def _hint(self, user: str) -> None:
        sooner = min(self._rules.idle_seconds or self._rules.session_seconds, self._rules.session_seconds)
        due_at = _microseconds(time.time() + sooner)
        await self._scripts.command("ZADD", self._due_key, "LT", due_at, user.encode())

    def _particulars(self, client: Client) -> tuple[str, ...]:
        location = self._locator.locate(client.ip_address)
        user_agent = _printable(client.user_agent, _USER_AGENT_CHARACTERS)
        hints = hints_of(client.headers)
        return (client.ip_address, user_agent, hints, location.city, location.country)

    def _remember(self, token: tuple[str, str]) -> None:
        self._known[token] = None
        if len(self._known) > _KNOWN_TOKENS:
            self._known.popitem(last=False)

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        """The live sessions, newest activity first, at most 1,000; with `include_inactive` also those that ended
        otherwise than by a DELETE."""

        def read(reply: list[Any]) -> list[Session]:
            return [_session(user, int(row), int(last), _decode_record(record)) for row, last, record in reply[1:]]

        return await self._run(LIST, user, read, self._idle, self._ended_ttl, int(include_inactive))

    async def end(self, user: str, session_id: int, reason: EndReason) -> Session | None:
        """Ends one session (`DEACTIVATED`: and keeps it listed as inactive). None: there is none to end."""

        def read(reply: list[Any]) -> Session | None:
            return _session(user, session_id, int(reply[1]), _decode_record(reply[2])) if len(reply) > 1 else None

        return await self._run(END, user, read, session_id, reason.value, self._idle, self._ended_ttl)

    async def end_all(self, user: str, reason: EndReason, *, spare: int | None = None) -> int:
        """Ends every session, or every one but `spare`. How many live ones that were."""
        return await self._run(END_ALL, user, _count, reason.value, spare or 0, self._idle, self._ended_ttl)

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        """Ends the session that a token names; every token of it is refused from then on, one never seen too. The
        session's id, or None where it was over, or never was."""
        return await self._run(
            LOGOUT,
            claims.user,
            _logged_out,
            claims.reference,
            claims.jti or "",
            self._token_expires_at(claims),
            self._idle,
            self._ended_ttl,
            secrets.randbelow(2**53 - 1) + 1,
            *self._particulars(client),
        )

    async def clean_up(self) -> int:
        """Takes idle and expired sessions of all users out of every list now; how many those were. Goes by the hints
        that `check` leaves, a bounded number of users at a time."""
        cleaned = 0
        # Read once: what is put back comes after it, so this ends, whatever the store's clock says.
        now = _microseconds(time.time())
        while True:
            users = await self._scripts.command("ZRANGEBYSCORE", self._due_key, "-inf", now, "LIMIT", 0, _USERS_A_STEP)
            if not isinstance(users, list):
                raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
            if users:
                # Away before the look, so that a hint which comes meanwhile stays.
                await self._scripts.command("ZREM", self._due_key, *users)
                cleaned += sum(await asyncio.gather(*(self._clean_up_user(user, now) for user in users)))
            if len(users) < _USERS_A_STEP:
                return cleaned

    async def _clean_up_user(self, user: bytes, now: int) -> int:
        cleaned = again = seen = 0
        while True:
            # Who is no text is nobody.
            found, at, seen = await self._run(
                CLEAN_UP, user.decode(errors="replace"), _cleaned, self._idle, self._ended_ttl, seen
            )
            cleaned += found
            again = min(at or again, again or at)
            if not seen:
                break
        if again:
            await self._scripts.command("ZADD", self._due_key, "LT", max(again, now + 1), user)
        return cleaned


def _cleaned(reply: list[Any]) -> tuple[int, int, int]:
    _, cleaned, again, seen = reply
    return int(cleaned), int(again), int(seen)


def _count(reply: list[Any]) -> int:
    _, number = reply
    return int(number)


def _logged_out(reply: list[Any]) -> int | None:
    _, ended, session_id = reply
    return int(session_id) if ended else None


def _checked(reply: list[Any]) -> Checked:
    _, word, session_id, end_reason, evicted = reply
    reason = EndReason(end_reason.decode()) if end_reason else None
    return Checked(word.decode(), int(session_id), reason, int(evicted))


def _session(user: str, session_id: int, last_activity: int, record: _Record) -> Session:
    return Session(
        id=session_id,
        user=user,
        reference=record.reference,
        jti=record.jti or None,
        ip_address=record.ip_address,
        user_agent=record.user_agent,
        device=device_of(record.user_agent, record.hints),
        location=Location(record.city, record.country),
        login_method=record.login_method,
        created_at=record.created_at,
        last_activity=last_activity,
        expires_at=record.expires_at,
        ended_at=record.ended_at or None,
        end_reason=EndReason(record.end_reason) if record.end_reason else None,
    )
