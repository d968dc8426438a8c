"""Sessions in the store: check, list and end them. The law that they follow is in `scripts/common.lua`."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, get_args

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.identifiers import written
from gatekeeper.models import CheckOutcome, CheckResult, Claims, Client, EndReason, Session
from gatekeeper.sessions.audit import AuditLog
from gatekeeper.sessions.device import prepare
from gatekeeper.sessions.events import SYSTEM, Actor
from gatekeeper.sessions.keys import microseconds, new_id, references
from gatekeeper.sessions.lists import Lists
from gatekeeper.sessions.recent_revocations import REPEAT_END_ALL
from gatekeeper.sessions.record import session_of
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.scripts import MANAGE, load
from gatekeeper.store.command import Command, ReplyReceiver

CHECK: Final = load("touch", "audit", "common", "check", "upkeep", "opening", "adopt")
# The same script. Opening a session waits for replicas where they are asked for; a touch never does.
OPEN: Final = msgspec.structs.replace(CHECK, durable=True)
END: Final = load(*MANAGE, "end", durable=True)
END_ALL: Final = load(*MANAGE, "end_all", durable=True)
LOGOUT: Final = load(*MANAGE, "logout", durable=True)
CLEAN_UP: Final = load(*MANAGE, "clean_up")
END_SID: Final = load(*MANAGE, "end_sid", durable=True)
STREAMS: Final = load(*MANAGE, "streams")
ENFORCE_LIMIT: Final = load(*MANAGE, "opening", "enforce_limit", durable=True)


# Tokens that passed in this process: a check of one sends nothing that only an opening needs. Half a kilobyte each.
_KNOWN_TOKENS: Final = 20_000
_USERS_A_STEP: Final = 100
# How long a process may take to look at a user before another one does, in microseconds.
_CLAIM: Final = 60_000_000


class SessionState(msgspec.Struct, frozen=True):
    """The state of a session: ended by `end_reason`, or live for `seconds_left` if nothing more happens to it."""

    session_id: int
    end_reason: EndReason | None
    seconds_left: float


# An outcome that is not among these raises an error, so that it refuses no token.
_OUTCOMES: Final[dict[bytes, CheckOutcome]] = {outcome.encode(): outcome for outcome in get_args(CheckOutcome)}
_ABSENT: Final = CheckResult("absent", 0, None, 0)


class _KnownToken(NamedTuple):
    """A token that passed: what its check depends on beside user and reference (payload, `exp`, exemption), and that
    check, packed for one second of this host's clock."""

    token: tuple[str, float, bool]
    touch: Command
    second: int


class SessionStore(Lists):
    """Runs the scripts of sessions. Every method that is awaited raises `StoreUnavailable`, and no other error."""

    def __init__(self, runner: ScriptRunner) -> None:
        super().__init__(runner)
        self._runner = runner
        self._known: OrderedDict[tuple[str, str], _KnownToken] = OrderedDict()
        self._caches_revoked = runner.revoked.is_enabled

    def __repr__(self) -> str:
        return f"<SessionStore {self._runner!r}>"

    @property
    def audit_log(self) -> AuditLog:
        return self._runner.outbox.audit_log

    async def check(
        self, claims: Claims, client: Client, *, exempt: bool = False, login_method: str = "token"
    ) -> CheckResult:
        """Finds the session of a verified token, judges and touches it, or opens one: one atomic script."""
        checked = _ABSENT
        known = self.touch(claims, exempt=exempt)
        if known is not None:
            checked = self.read_check(claims, known, await self._runner.send(known))
            if checked.outcome not in {"absent", "older"}:
                return checked
        arguments = self._check_arguments(claims, int(time.time()), exempt=exempt, with_digest=True)
        decided_by_digest = checked.outcome == "older"
        is_unknown = known is None and (self._runner.replicated or len(self._known) >= _KNOWN_TOKENS)
        if decided_by_digest or is_unknown:
            # An opening waits for replicas, which a touch must not. And where more tokens are in use than are known
            # here, an unknown one may well have a session.
            checked = await self._runner.run_positional(CHECK, claims.user, _checked, *arguments)
        if checked.outcome == "absent":
            opening = self._runner.openings.fields(claims, client, exempt=exempt, login_method=login_method)
            checked = await self._open(claims, client, arguments, opening)
        if checked.outcome in {"touched", "opened"}:
            self._remember(claims, exempt=exempt, with_digest=decided_by_digest)
        self._cache(claims, checked)
        return checked

    def touch(self, claims: Claims, *, exempt: bool) -> Command | None:
        """The check of a token that passed in this process before, for `send_for` and `read_check`; None for any other
        token."""
        key = (claims.user, claims.reference)
        known = self._known.get(key)
        if known is None:
            return None
        self._known.move_to_end(key)
        second = int(time.time())
        if known.token != (token := (claims.digest, claims.expires_at, exempt)):
            known = self._known[key] = _KnownToken(token, self._prepared(claims, second, exempt=exempt), second)
        elif known.second != second:
            known = self._known[key] = _KnownToken(token, known.touch.with_last(b"%010d" % second), second)
        return known.touch

    def send_for(self, reply: ReplyReceiver, touch: Command) -> None:
        """Sends a touch without awaiting it: `reply` receives the argument for `read_check`, or a `StoreUnavailable`.
        Raises `StoreUnavailable` where nothing was sent."""
        self._runner.send_for(reply, touch)

    def read_check(self, claims: Claims, touch: Command, reply: Any) -> CheckResult:
        """Reads the reply to a touch. Raises `StoreUnavailable`."""
        checked = self._runner.read_reply(touch.key, reply, _checked)
        if self._caches_revoked:
            self._cache(claims, checked)
        return checked

    def _cache(self, claims: Claims, checked: CheckResult) -> None:
        """Remembers the result for a time in which the store cannot be reached."""
        if checked.outcome in {"touched", "opened"}:
            self._runner.revoked.add_live(claims.user, claims.reference, checked.session_id, claims.digest)
        elif checked.outcome in {"ended", "unknown"}:
            self._runner.revoked.add_refused(claims, checked.session_id, checked.end_reason)

    def _check_arguments(
        self, claims: Claims, second: int, *, exempt: bool, with_digest: bool = False
    ) -> tuple[Any, ...]:
        """The positions after the rules in `check.lua`. The last one is this host's clock, always as long."""
        issued_at = microseconds(claims.issued_at or 0)
        return (
            claims.reference,
            written(claims.jti) if claims.jti else "",
            f"{issued_at} {claims.digest}" if with_digest else issued_at,
            self._runner.openings.expires_at(claims.expires_at),
            int(exempt),
            b"%010d" % second,
        )

    def _prepared(self, claims: Claims, second: int, *, exempt: bool, with_digest: bool = False) -> Command:
        arguments = self._check_arguments(claims, second, exempt=exempt, with_digest=with_digest)
        return self._runner.prepare(CHECK, claims.user, *arguments)

    async def _open(
        self, claims: Claims, client: Client, arguments: tuple[Any, ...], opening: Mapping[str, Any]
    ) -> CheckResult:
        """Runs a check that may open a session; once more where the store has lost data since the last beat."""
        epoch = self._runner.epoch
        for _ in range(3):
            checked = await self._runner.run_audited(
                OPEN,
                claims.user,
                _checked,
                {"opening": opening, "adopt_not_before": epoch.adopt_not_before, "epoch": epoch.id},
                *arguments,
                actor=Actor.of(client, claims.user),
                extra_key=None if epoch.in_other_slot else epoch.key,
                indexes=self._runner.indexes.for_opening(claims),
            )
            if checked.outcome != "lost":
                return checked
            await epoch.beat()
        raise StoreUnavailable("the session store keeps losing its data", kind="protocol")

    def _remember(self, claims: Claims, *, exempt: bool, with_digest: bool) -> None:
        token, second = (claims.digest, claims.expires_at, exempt), int(time.time())
        prepared = self._prepared(claims, second, exempt=exempt, with_digest=with_digest)
        self._known[claims.user, claims.reference] = _KnownToken(token, prepared, second)
        if len(self._known) > _KNOWN_TOKENS:
            self._known.popitem(last=False)

    async def enforce_limit(self, user: str, *, actor: Actor = SYSTEM) -> int:
        """Ends sessions beyond a lowered device limit, by the policy. Returns how many."""
        if not self._runner.rules.device_limit:
            return 0
        return await self._runner.run_audited(ENFORCE_LIMIT, user, _count, {}, actor=actor)

    async def session_states(self, user: str, moved: Mapping[int, float | None]) -> list[SessionState]:
        """Returns the states of sessions with open streams. `moved`: by id, how many seconds ago bytes moved on a
        stream, which counts as activity like a request, or None. Asking counts as none."""
        pairs = [
            (str(session_id), -1 if ago is None else microseconds(max(ago, 0.0))) for session_id, ago in moved.items()
        ]
        return await self._runner.run(STREAMS, user, _states, {"moved": pairs})

    async def end(
        self,
        user: str,
        session_id: int,
        reason: EndReason,
        *,
        actor: Actor = SYSTEM,
        only_live: bool = False,
        note: str = "",
    ) -> Session | None:
        """Ends one session; `DEACTIVATED` keeps it listed as inactive. Returns None where there is none to end. An
        inactive one that is listed counts as one to be hidden, unless `only_live`. `note` is for the audit log, where
        the session is `REPORTED`."""

        def read(reply: list[Any]) -> Session | None:
            if len(reply) == 1:
                return None
            session = session_of(user, session_id, int(reply[1]), *reply[2:])
            self._runner.recent.remember_session(user, str(session_id), reply[2], actor)
            return session

        arguments = {"id": str(session_id), "reason": reason.value, "only_live": only_live, "note": note}
        await prepare()
        ended = await self._runner.run_audited(END, user, read, arguments, actor=actor)
        if ended is not None:
            self._runner.revoked.add_ended(user, session_id, reason)
        return ended

    async def end_all(self, user: str, reason: EndReason, *, spare: int | None = None, actor: Actor = SYSTEM) -> int:
        """Ends every session, or every one but `spare`. Returns how many live ones ended."""

        def read(reply: list[Any]) -> int:
            _, number, instant, spared = reply
            again = {"at": int(instant), "reason": reason.value, "spare": spared.decode()}
            self._runner.recent.remember(REPEAT_END_ALL, user, again, actor)
            return int(number)

        arguments = {"reason": reason.value, "spare": str(spare or 0)}
        count = await self._runner.run_audited(END_ALL, user, read, arguments, actor=actor)
        self._runner.revoked.add_all_ended(user, microseconds(time.time()), spare, reason)
        return count

    async def log_out(self, claims: Claims, client: Client) -> int | None:
        """Ends the session that a token names. Every token of it is refused afterwards, also one never seen. Returns
        the id of the session, or None where no live session ended."""
        arguments = {"opening": self._runner.openings.fields(claims, client)}
        actor = Actor.of(client, claims.user)

        def read(reply: list[Any]) -> tuple[int, bool]:
            _, ended, session_id, record = reply
            if record:
                self._runner.recent.remember_session(claims.user, session_id.decode(), record, actor)
            return int(session_id), bool(ended)

        session_id, ended = await self._runner.run_audited(LOGOUT, claims.user, read, arguments, actor=actor)
        self._runner.revoked.add_refused(claims, session_id, EndReason.LOGGED_OUT)
        if not ended:
            return None
        self._runner.revoked.add_ended(claims.user, session_id, EndReason.LOGGED_OUT)
        return session_id

    async def log_out_unseen(self, user: str, reference: str, client: Client) -> None:
        """Makes sure that tokens with a reference which no session has open none, where unknown tokens would."""
        if not self._runner.rules.adopt_unknown:
            return
        # A name may be read in two ways: the user's tokens of neither open a session.
        for each in references(reference):
            claims = Claims(
                user=user,
                reference=each,
                jti=None,
                roles=(),
                is_admin=False,
                issued_at=None,
                expires_at=time.time() + self._runner.rules.session_seconds,
                claims={},
            )
            await self.log_out(claims, client)

    async def end_sid(
        self,
        user: str,
        sid: str,
        *,
        tokens_expire_at: float,
        issued_at: float | None = None,
        actor: Actor = SYSTEM,
    ) -> int:
        """Ends every session whose tokens carry `sid`, those never seen included; the last of these tokens expires at
        `tokens_expire_at` (seconds). A report of `issued_at` (seconds) concerns no session that a login opened under
        the reference of one that had ended by then. Returns how many live ones ended."""
        arguments = {
            "sid": written(sid),
            "tokens_expire_at": microseconds(tokens_expire_at),
            "id": str(new_id()),
            "at": 0,
            "issued_at": microseconds(issued_at or 0),
        }
        ended = from_activity = 0
        while True:
            step = {**arguments, "from_activity": from_activity}
            found, from_activity, instant = await self._runner.run_audited(
                END_SID, user, _ended_so_far, step, actor=actor
            )
            ended += found
            if not from_activity:
                again = {**arguments, "from_activity": 0, "at": instant}
                self._runner.recent.remember(END_SID, user, again, actor)
                self._runner.revoked.add_ended_sid(user, written(sid), EndReason.LOGGED_OUT, issued_at=issued_at)
                return ended

    async def clean_up(self) -> int:
        """Hides idle and expired sessions of all users from every list now. Returns how many. Works from the hints that
        openings and the housekeeping leave, on a bounded number of users at a time."""
        await self._runner.require_clocks_to_agree()
        cleaned = 0
        # Read once: users that are put back come after it, so this ends, whatever the store's clock says.
        now = microseconds(time.time())
        # The due users first: those that the housekeeping claims meanwhile are among the cleanable ones by then.
        for next_users in (partial(self._claim_due, now), self._runner.indexes.take_cleanable_users):
            found = _USERS_A_STEP
            while found == _USERS_A_STEP:
                users, found = await next_users(_USERS_A_STEP)
                cleaned += await self._clean_up_users(users, now, hide=True)
        return cleaned

    async def _claim_due(self, now: int, limit: int) -> tuple[list[bytes], int]:
        """Claims up to `limit` due users for this process. Returns them, and how many were due."""
        due = await self._runner.indexes.due_users(now, limit)
        claims = await asyncio.gather(*(self._runner.indexes.claim_due(user, until=now + _CLAIM) for user in due))
        return [user for user, mine in zip(due, claims, strict=True) if mine], len(due)

    async def settle_due(self, limit: int) -> int:
        """Ends the due sessions of at most `limit` users, and deletes records that are kept no longer; hides none from
        the lists. Returns how many users it has looked at."""
        await self._runner.require_clocks_to_agree()
        now = microseconds(time.time())
        due, found = await self._claim_due(now, limit)
        users = [*due, *await self._runner.indexes.cleanable_users(now, limit)]
        await self._clean_up_users(users, now, hide=False)
        return max(found, len(users))

    async def _clean_up_users(self, users: Sequence[bytes], now: int, *, hide: bool) -> int:
        """Returns how many sessions were hidden. A fault with one user does not keep the others from being cleaned up;
        one that the store refuses for good is not tried again."""
        results = await asyncio.gather(
            *(self._clean_up_user(user, now, hide=hide) for user in users), return_exceptions=True
        )
        cleaned, faults, writes = 0, list[BaseException](), list[Awaitable[None]]()
        for user, result in zip(users, results, strict=True):
            if isinstance(result, _CleanUp):
                cleaned += result.cleaned
                writes.append(self._runner.indexes.set_cleanable(user, result.listed_until))
                continue
            faults.append(result)
            if isinstance(result, StoreUnavailable) and result.kind == "refused":
                writes.append(self._runner.indexes.set_cleanable(user, 0))
        await asyncio.gather(*writes)
        if faults:
            raise faults[0]
        return cleaned

    async def _clean_up_user(self, user: bytes, now: int, *, hide: bool) -> _CleanUp:
        cleaned = next_due = seen = listed_until = 0
        # A user id that is not UTF-8 cannot be a user: its script finds no session.
        name = user.decode(errors="replace")
        while True:
            found = await self._runner.run(CLEAN_UP, name, _cleaned_up, {"seen": seen, "hide": hide})
            cleaned += found.cleaned
            next_due = min(found.next_due or next_due, next_due or found.next_due)
            listed_until = max(listed_until, found.listed_until)
            # It grows with each call; 0 says that all were looked at.
            if found.seen <= seen:
                break
            seen = found.seen
        if next_due:
            await self._runner.indexes.add_due(user, max(next_due, now + 1))
        await self._runner.outbox.deliver(name)
        return _CleanUp(cleaned, next_due, 0, listed_until)


class _CleanUp(msgspec.Struct, frozen=True):
    """The reply of `clean_up.lua`; instants in microseconds."""

    cleaned: int
    next_due: int
    seen: int
    listed_until: int


def _cleaned_up(reply: list[Any]) -> _CleanUp:
    _, *numbers = reply
    return _CleanUp(*map(int, numbers))


def _ended_so_far(reply: list[Any]) -> tuple[int, int, int]:
    _, ended, from_activity, instant = reply
    return int(ended), int(from_activity), int(instant)


def _states(reply: list[Any]) -> list[SessionState]:
    return [
        SessionState(int(session_id), EndReason(reason.decode()) if reason else None, int(left) / 1e6)
        for session_id, reason, left in reply[1:]
    ]


def _count(reply: list[Any]) -> int:
    _, number = reply
    return int(number)


def _checked(reply: list[Any]) -> CheckResult:
    _, outcome, session_id, end_reason, evicted = reply
    reason = EndReason(end_reason.decode()) if end_reason else None
    return CheckResult(_OUTCOMES[outcome], int(session_id), reason, int(evicted))
