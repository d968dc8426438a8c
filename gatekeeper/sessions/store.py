"""Sessions in the store: what can be asked of it, in terms of the engine. The law is in `scripts/common.lua`."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims, Client, EndReason, Session
from gatekeeper.sessions.audit import AuditLog
from gatekeeper.sessions.events import SYSTEM, Actor
from gatekeeper.sessions.keys import ScriptRunner, microseconds, new_id
from gatekeeper.sessions.record import session_of
from gatekeeper.sessions.scripts import load
from gatekeeper.store.command import Command, ReplyReceiver

CHECK: Final = load("audit", "common", "check", "upkeep", "opening", "adopt")
# The same, with what an opening needs.
OPEN: Final = msgspec.structs.replace(CHECK, durable=True)
LIST: Final = load("audit", "common", "upkeep", "list")
END: Final = load("audit", "common", "upkeep", "end", durable=True)
END_ALL: Final = load("audit", "common", "upkeep", "end_all", durable=True)
LOGOUT: Final = load("audit", "common", "upkeep", "logout", durable=True)
CLEAN_UP: Final = load("audit", "common", "upkeep", "clean_up")
END_SID: Final = load("audit", "common", "upkeep", "end_sid", durable=True)
FIND: Final = load("audit", "common", "upkeep", "find")
STREAMS: Final = load("audit", "common", "upkeep", "streams")
ENFORCE: Final = load("audit", "common", "upkeep", "opening", "enforce", durable=True)

CheckOutcome = Literal["touched", "opened", "ended", "unknown", "full", "absent", "lost"]

# Tokens that this process has seen pass: for them nothing is sent that only an opening needs. Half a kilobyte each.
_KNOWN_TOKENS: Final = 20_000
_USERS_A_STEP: Final = 100
# How long a process may take to look at a user before another one does, in microseconds.
_CLAIM: Final = 60_000_000
# What a reference is made of (tokens/claims.py), and a `jti`.
_NAME: Final = re.compile(r"[A-Za-z0-9._~+/=:-]{1,320}")


class CheckResult(msgspec.Struct, frozen=True):
    """The answer to a check: `word`, the session's id (0 where there is none), how it ended, how many it evicted."""

    outcome: CheckOutcome
    session_id: int
    end_reason: EndReason | None
    evicted: int


class SessionState(msgspec.Struct, frozen=True):
    """How a session stands: over, by `end_reason`, or live for `seconds` more if nothing happens until then."""

    session_id: int
    end_reason: EndReason | None
    seconds_left: float


# Any other word is no answer of ours, and refuses nobody.
_OUTCOMES: Final[dict[bytes, CheckOutcome]] = {word.encode(): word for word in get_args(CheckOutcome)}
_ABSENT: Final = CheckResult("absent", 0, None, 0)


class _Known(NamedTuple):
    """A reference that passed: what its check depends on beside it (`jti`, `exp`, whether it is exempt; `iat` matters
    to openings only), and that check."""

    token: tuple[str | None, float, bool]
    touch: Command


class SessionStore:
    """One implementation over the Redis protocol. Every method raises `StoreUnavailable` and nothing else."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._caches_revoked = runner.revoked.is_enabled
        self._over = (runner.idle, runner.ended_ttl)
        # The part of a check that does not depend on the request.
        self._settled = (runner.idle, runner.ttl, runner.ended_ttl, runner.limit, runner.policy, runner.unknown)

    def __repr__(self) -> str:
        return f"<SessionStore {self._runner!r}>"

    @property
    def audit_log(self) -> AuditLog:
        """Where what happens is put on record."""
        return self._runner.outbox.audit_log

    async def check(
        self, claims: Claims, client: Client, *, exempt: bool = False, login_method: str = "token"
    ) -> CheckResult:
        """Finds the session of a verified token, judges and touches it, or opens one: one atomic script."""
        checked = _ABSENT
        known = self.touch(claims, exempt=exempt)
        if known is not None:
            checked = self.read_check(claims, known, await self._runner.send(known))
            if checked.outcome != "absent":
                return checked
        arguments = self._arguments(claims, exempt=exempt)
        if known is None and (self._runner.replicated or len(self._known) >= _KNOWN_TOKENS):
            # What opens waits for replicas where they are asked for; a touch never does. And where more tokens come
            # than can be known here, one that is not may well have a session.
            checked = await self._runner.run(CHECK, claims.user, _checked, *arguments)
        if checked.outcome == "absent":
            checked = await self._open(claims, client, (*arguments, login_method, *self._runner.client_details(client)))
        if checked.outcome in {"touched", "opened"}:
            self._remember(claims, exempt=exempt)
        self._cache(claims, checked)
        return checked

    def touch(self, claims: Claims, *, exempt: bool) -> Command | None:
        """The check of a token that this process has seen pass, for `send` and `checked`; None for any other token."""
        key = (claims.user, claims.reference)
        known = self._known.get(key)
        if known is None:
            return None
        self._known.move_to_end(key)
        if known.token != (token := (claims.jti, claims.expires_at, exempt)):
            known = self._known[key] = _Known(token, self._prepared(claims, exempt=exempt))
        return known.touch

    def send_for(self, reply: ReplyReceiver, touch: Command) -> None:
        """Makes the check for those who cannot await: `reply` is told what to give `checked`, or a `StoreUnavailable`.
        Raises `StoreUnavailable`."""
        self._runner.send_for(reply, touch)

    def read_check(self, claims: Claims, touch: Command, reply: Any) -> CheckResult:
        """What the store says. Raises `StoreUnavailable`."""
        checked = self._runner.read_reply(touch.key, reply, _checked)
        if self._caches_revoked:
            self._cache(claims, checked)
        return checked

    def _cache(self, claims: Claims, checked: CheckResult) -> None:
        """Remembers what was found out, for the time in which it cannot be."""
        if checked.outcome in {"touched", "opened"}:
            self._runner.revoked.add_live(claims.user, claims.reference, checked.session_id)
        elif checked.outcome in {"ended", "unknown"}:
            self._runner.revoked.add_ended_reference(claims.user, claims.reference, checked.end_reason)

    def _arguments(self, claims: Claims, *, exempt: bool) -> tuple[Any, ...]:
        return (
            claims.reference,
            claims.jti or "",
            microseconds(claims.issued_at or 0),
            self._runner.token_expires_at(claims),
            *self._settled,
            new_id(),
            int(exempt),
        )

    def _prepared(self, claims: Claims, *, exempt: bool) -> Command:
        return self._runner.prepare(CHECK, claims.user, *self._arguments(claims, exempt=exempt))

    async def _open(self, claims: Claims, client: Client, arguments: tuple[Any, ...]) -> CheckResult:
        """A check that may open a session: not by what is known of a store that has lost its data since."""
        epoch = self._runner.epoch
        for _ in range(3):
            checked = await self._runner.run_audited(
                OPEN,
                claims.user,
                _checked,
                *arguments,
                epoch.adopt_not_before,
                epoch.id,
                actor=Actor.of(client, claims.user),
                extra_key=None if epoch.in_other_slot else epoch.key,
                indexes=self._runner.indexes(claims),
            )
            if checked.outcome != "lost":
                return checked
            await epoch.beat()
        raise StoreUnavailable("the session store loses its data", kind="protocol")

    def _remember(self, claims: Claims, *, exempt: bool) -> None:
        token = (claims.jti, claims.expires_at, exempt)
        self._known[claims.user, claims.reference] = _Known(token, self._prepared(claims, exempt=exempt))
        if len(self._known) > _KNOWN_TOKENS:
            self._known.popitem(last=False)

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]:
        """The live sessions, newest activity first, at most 1,000; with `include_inactive` also those that ended
        otherwise than by a DELETE."""

        def read(reply: list[Any]) -> list[Session]:
            return [session_of(user, int(row), int(last), record) for row, last, record in reply[1:]]

        return await self._runner.run(LIST, user, read, *self._over, int(include_inactive))

    async def find(self, user: str, name: str, *, touch: bool = False) -> Session | None:
        """The session, live or over, whose tokens have the reference `name`, or the newest of which has that `jti`.
        With `touch` the activity of a live one moves."""
        if not _NAME.fullmatch(name):
            return None

        def read(reply: list[Any]) -> Session | None:
            if len(reply) == 1:
                return None
            _, session_id, last_activity, record = reply
            return session_of(user, int(session_id), int(last_activity), record)

        return await self._runner.run(FIND, user, read, *self._over, name, int(touch))

    async def enforce_limit(self, user: str, *, actor: Actor = SYSTEM) -> int:
        """Ends what a lowered limit has left over, by the policy. How many those were."""
        if not self._runner.limit:
            return 0
        rules = (*self._over, self._runner.limit, self._runner.policy)
        return await self._runner.run_audited(ENFORCE, user, _count, *rules, actor=actor)

    async def session_states(self, user: str, moved: Mapping[int, float | None]) -> list[SessionState]:
        """How sessions with open streams stand. `moved`: by id, how many seconds ago bytes moved on one of them, which
        is activity as a request is, or None. To be asked about is none."""
        arguments = [
            argument
            for session_id, ago in moved.items()
            for argument in (session_id, -1 if ago is None else microseconds(max(ago, 0.0)))
        ]
        return await self._runner.run(STREAMS, user, _states, *self._over, *arguments)

    async def end(self, user: str, session_id: int, reason: EndReason, *, actor: Actor = SYSTEM) -> Session | None:
        """Ends one session (`DEACTIVATED`: and keeps it listed as inactive). None: there is none to end."""

        def read(reply: list[Any]) -> Session | None:
            return session_of(user, session_id, int(reply[1]), reply[2]) if len(reply) > 1 else None

        ended = await self._runner.run_audited(END, user, read, session_id, reason.value, *self._over, actor=actor)
        if ended is not None:
            self._runner.revoked.add_ended(user, session_id, reason)
        return ended

    async def end_all(self, user: str, reason: EndReason, *, spare: int | None = None, actor: Actor = SYSTEM) -> int:
        """Ends every session, or every one but `spare`. How many live ones that were."""
        count = await self._runner.run_audited(
            END_ALL, user, _count, reason.value, spare or 0, *self._over, actor=actor
        )
        self._runner.revoked.add_all_ended(user, microseconds(time.time()), spare, reason)
        return count

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        """Ends the session that a token names; every token of it is refused from then on, one never seen too. The
        session's id, or None where it was over, or never was."""
        ended = await self._runner.run_audited(
            LOGOUT,
            claims.user,
            _logged_out,
            claims.reference,
            claims.jti or "",
            self._runner.token_expires_at(claims),
            *self._over,
            new_id(),
            *self._runner.client_details(client),
            actor=Actor.of(client, claims.user),
        )
        self._runner.revoked.add_ended_reference(claims.user, claims.reference, EndReason.LOGGED_OUT)
        if ended is not None:
            self._runner.revoked.add_ended(claims.user, ended, EndReason.LOGGED_OUT)
        return ended

    async def log_out_unseen(self, user: str, reference: str, client: Client) -> None:
        """Sees to it that tokens with a reference that no session has open none, where such tokens would."""
        if self._runner.unknown == "reject" or not _NAME.fullmatch(reference):
            return
        until = time.time() + self._runner.ttl / 1e6
        claims = Claims(
            user=user,
            reference=reference,
            jti=None,
            roles=(),
            is_admin=False,
            issued_at=None,
            expires_at=until,
            claims={},
        )
        await self.log_out(claims, client)

    async def end_sid(self, user: str, sid: str, *, tokens_expire_at: float, actor: Actor = SYSTEM) -> int:
        """Ends every session whose tokens carry `sid`, those never seen included, whose last is over at
        `tokens_expire_at` (seconds). How many live ones that were."""
        until, ended, seen = microseconds(tokens_expire_at), 0, 0
        while True:
            arguments = (sid, until, *self._over, new_id(), seen)
            found, seen = await self._runner.run_audited(END_SID, user, _ended_so_far, *arguments, actor=actor)
            ended += found
            if not seen:
                self._runner.revoked.add_ended_sid(user, sid, EndReason.LOGGED_OUT)
                return ended

    async def clean_up(self) -> int:
        """Takes idle and expired sessions of all users out of every list now; how many those were. Goes by the hints
        that openings and the housekeeping leave, a bounded number of users at a time."""
        cleaned = 0
        # Read once: what is put back comes after it, so this ends, whatever the store's clock says.
        now = microseconds(time.time())
        # Those due first: what the housekeeping claims meanwhile is among the others by then.
        for next_users in (partial(self._claimed, now), self._runner.take_cleanable_users):
            found = _USERS_A_STEP
            while found == _USERS_A_STEP:
                users, found = await next_users(_USERS_A_STEP)
                cleaned += await self._look_at_all(users, now, hide=True)
        return cleaned

    async def _claimed(self, now: int, most: int) -> tuple[list[bytes], int]:
        """Users at whom this process is to look now, and no other; and how many are due, `most` at the most."""
        due = await self._runner.due_users(now, most)
        claims = await asyncio.gather(*(self._runner.claim(user, until=now + _CLAIM) for user in due))
        return [user for user, mine in zip(due, claims, strict=True) if mine], len(due)

    async def settle_due(self, most: int) -> int:
        """Ends what is due, of at most `most` users, and takes from the indexes what nobody needs any more; out of the
        lists it takes nothing. How many users it has looked at."""
        now = microseconds(time.time())
        due, found = await self._claimed(now, most)
        users = [*due, *await self._runner.cleanable_users(now, most)]
        await self._look_at_all(users, now, hide=False)
        return max(found, len(users))

    async def _look_at_all(self, users: Sequence[bytes], now: int, *, hide: bool) -> int:
        """How many were taken out of the lists. One user who cannot be looked at is in the way of no other, and the
        next time of nobody."""
        looks = await asyncio.gather(*(self._look_at(user, now, hide=hide) for user in users), return_exceptions=True)
        cleaned, faults, settled = 0, list[BaseException](), list[Awaitable[None]]()
        for user, look in zip(users, looks, strict=True):
            if isinstance(look, _Look):
                cleaned += look.cleaned
                settled.append(self._runner.set_cleanable(user, look.listed_until))
                continue
            faults.append(look)
            if isinstance(look, StoreUnavailable) and look.kind == "refused":
                settled.append(self._runner.set_cleanable(user, 0))
        await asyncio.gather(*settled)
        if faults:
            raise faults[0]
        return cleaned

    async def _look_at(self, user: bytes, now: int, *, hide: bool) -> _Look:
        cleaned = again = seen = listed_until = 0
        # Who is no text is nobody.
        name = user.decode(errors="replace")
        while True:
            found = await self._runner.run(CLEAN_UP, name, _looked, *self._over, seen, int(hide))
            cleaned += found.cleaned
            again = min(found.again or again, again or found.again)
            listed_until = max(listed_until, found.listed_until)
            # It only ever grows; 0 is the end.
            if found.seen <= seen:
                break
            seen = found.seen
        if again:
            await self._runner.hint(user, max(again, now + 1))
        await self._runner.outbox.deliver(name)
        return _Look(cleaned, again, 0, listed_until)


class _Look(msgspec.Struct, frozen=True):
    """What `clean_up.lua` answers; instants in microseconds."""

    cleaned: int
    again: int
    seen: int
    listed_until: int


def _looked(reply: list[Any]) -> _Look:
    _, *numbers = reply
    return _Look(*map(int, numbers))


def _ended_so_far(reply: list[Any]) -> tuple[int, int]:
    _, ended, seen = reply
    return int(ended), int(seen)


def _states(reply: list[Any]) -> list[SessionState]:
    return [
        SessionState(int(session_id), EndReason(reason.decode()) if reason else None, int(left) / 1e6)
        for session_id, reason, left in reply[1:]
    ]


def _count(reply: list[Any]) -> int:
    _, number = reply
    return int(number)


def _logged_out(reply: list[Any]) -> int | None:
    _, ended, session_id = reply
    return int(session_id) if ended else None


def _checked(reply: list[Any]) -> CheckResult:
    _, word, session_id, end_reason, evicted = reply
    reason = EndReason(end_reason.decode()) if end_reason else None
    return CheckResult(_OUTCOMES[word], int(session_id), reason, int(evicted))
