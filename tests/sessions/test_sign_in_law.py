"""A model of the law of sign-ins in Python, checked against the store (S01, S06, S07, S16, S24, S30).

As in test_store_law.py, time is the sum of the jumps that the rules make. Here a session has many names, which come and
go: references of access tokens (`r:…`) and digests of refresh tokens (`f:…`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.keys import Policy
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.sign_ins import RefreshToken, SignInResult, SignIns, Successor
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from tests.sessions.by_hand import CLIENT, Hand, token
from tests.sessions.test_store_law import msgspec_replace, replace_claims
from tests.waiting import HANG_SECONDS

IDLE, TTL, ENDED_TTL, WINDOW, LONGEST = 1_000, 3_000, 2_000, 600, 9_000
JUMPS = st.sampled_from([0] * 12 + [300, 300, 700, 1_000, 2_100])
LIVES = st.sampled_from([400, 1_500, LONGEST])
REFERENCES = st.sampled_from(["h:" + "0" * 64, "h:" + "1" * 64, "j1", "s1", "s1:1", "s1:2"])
REFRESHES = st.sampled_from([None, "d0", "d1", "d2"])
PRESENTED = st.sampled_from([None, None, None, "h:" + "0" * 64, "j1", "s1", "s1:1"])
REFRESH_LIVES = st.sampled_from([None, None, 400, LONGEST])
NTH = st.integers(0, 30)
Instant = tuple[int, int]
"""Jumped seconds, then the order of events within them."""


@dataclass
class Token:
    reference: str
    jti: str
    issued: Instant | None
    real_issued: float | None
    expires: Instant
    real_expires: float

    @property
    def digest(self) -> str:
        return self.reference[2:] if self.reference.startswith("h:") else self.jti

    def issued_until(self, instant: Instant) -> bool:
        return self.issued is None or self.issued <= instant


@dataclass(eq=False)
class Earlier:
    """The session that had the reference before: it ended at `until`; tokens of it may be presented until `kept`."""

    reference: str
    until: Instant
    record: Record
    kept: int


@dataclass(eq=False)
class Record:
    session_id: int
    created: Instant
    activity: Instant
    token: Token
    """The newest refresh token."""
    reference: str
    refresh: str | None
    method: str
    token_expires: Instant
    refresh_expires: int = 0
    older: dict[str, int] = field(default_factory=dict)
    """Older names, and until when they are known."""
    ended: EndReason | None = None
    ended_at: Instant = (0, 0)
    hidden: bool = False
    forget: int = 0
    earlier: Earlier | None = None


class SignInLaw(RuleBasedStateMachine):
    """Each rule is one call; its result, and the data stored after it, must be those of the model."""

    url = ""
    whole = True
    """False excludes the exceptions in docs/security.md: logouts by a provider, and an older name that lives longer."""

    def __init__(self) -> None:
        super().__init__()
        self.hand = Hand(self.url)
        self.hand.redis.flushall()
        self.runner = asyncio.Runner()
        self.jumped = self.tick = 0
        self.tokens: dict[str, Token] = {}
        self.records: list[Record] = []
        self.names: dict[str, Record] = {}
        self.marks: dict[str, tuple[Instant, int]] = {}
        self.pairs: dict[int, tuple[str, bytes, int]] = {}
        self.rotated: dict[int, tuple[str, int]] = {}
        """By session: the token whose successor the newest one is, and how often that was replaced."""
        self.not_before: tuple[Instant, int] | None = None
        self.ids = [0]
        self.over: set[int] = set()
        self.idle: int | None = None

    def teardown(self) -> None:
        if hasattr(self, "store_client"):
            self.runner.run(self.store_client.aclose())
        self.runner.close()
        self.hand.redis.close()

    @initialize(
        limit=st.sampled_from([1, 2, 3, None]),
        policy=st.sampled_from(["evict_idle", "evict_oldest", "reject"]),
        idle=st.sampled_from([IDLE, None]),
        adopt=st.sampled_from([True, True, True, True, False]),
        window=st.sampled_from([WINDOW, WINDOW, WINDOW, WINDOW, 0]),
    )
    def begin(self, limit: int | None, policy: Policy, idle: int | None, adopt: bool, window: int) -> None:
        self.limit, self.policy, self.adopt, self.window = limit, policy, adopt, window
        self.idle = idle
        rules = msgspec_replace(
            session_seconds=TTL,
            idle_seconds=idle,
            ended_seconds=ENDED_TTL,
            device_limit=limit,
            policy=policy,
            adopt_unknown=adopt,
        )
        self.store_client = StoreClient(self.url, timeout_seconds=HANG_SECONDS)
        runner = ScriptRunner(self.store_client, key_prefix="gk:", rules=rules)
        self.store, self.sign_ins = SessionStore(runner), SignIns(runner, reuse_window_seconds=window)

    # What the model knows

    def now(self) -> Instant:
        self.tick += 1
        return (self.jumped, self.tick)

    def pass_time(self, seconds: int) -> None:
        self.jumped += seconds
        if seconds:
            self.hand.let_pass(seconds)

    def due(self, record: Record) -> tuple[EndReason, Instant] | None:
        causes: list[tuple[Instant, int, EndReason]] = []
        if self.not_before is not None:
            instant, spared = self.not_before
            if record.created <= instant and record.session_id != spared:
                causes.append((instant, 0, EndReason.REVOKED_BY_USER))
        if record.created[0] + TTL <= self.jumped:
            causes.append(((record.created[0] + TTL, record.created[1]), 1, EndReason.EXPIRED))
        if self.idle is not None and record.activity[0] + self.idle <= self.jumped:
            causes.append(((record.activity[0] + self.idle, record.activity[1]), 2, EndReason.IDLE))
        return (min(causes)[2], min(causes)[0]) if causes else None

    def finish(self, record: Record, reason: EndReason, at: Instant | None = None) -> None:
        record.ended, record.hidden = reason, reason is EndReason.REVOKED_BY_USER
        record.ended_at = at or self.now()
        record.forget = max(self.jumped + ENDED_TTL, record.token_expires[0], record.refresh_expires)
        if record.earlier is not None:
            record.forget = max(record.forget, record.earlier.kept)

    def settle(self) -> None:
        for record in self.records:
            due = None if record.ended else self.due(record)
            if due is not None:
                self.finish(record, *due)

    def over_by(self, record: Record) -> EndReason | None:
        """Returns the end reason of a session that has ended, and settles one that is due."""
        if record.ended is None and (due := self.due(record)):
            self.finish(record, *due)
        return record.ended

    def older(self, asked: Token) -> Record | None:
        """Returns the ended session of a token, where a login has opened another one under the reference since. The
        newest one is kept while the token lives."""
        newest = record = self.names.get(f"r:{asked.reference}")
        handed_out_by = self.names.get(f"p:{asked.digest}")
        while (
            record in self.records
            and (earlier := record.earlier) is not None
            and earlier.reference == asked.reference
            and asked.issued_until(earlier.until)
            and handed_out_by is not record
        ):
            record = earlier.record
        if record is newest:
            return None
        assert newest is not None
        assert newest.earlier is not None
        newest.earlier.kept = max(newest.earlier.kept, asked.expires[0])
        newest.forget = max(newest.forget, newest.earlier.kept)
        return record

    def remember(self, record: Record, asked: Token) -> None:
        earlier = record.earlier
        if earlier is not None and earlier.reference == asked.reference and asked.issued_until(earlier.until):
            self.names[f"p:{asked.digest}"] = record
            record.older[f"p:{asked.digest}"] = asked.expires[0]

    def forget(self) -> None:
        gone = {id(record) for record in self.records if record.ended and record.forget <= self.jumped}
        self.records = [record for record in self.records if id(record) not in gone]
        self.names = {name: record for name, record in self.names.items() if id(record) not in gone}
        self.marks = {sid: mark for sid, mark in self.marks.items() if mark[1] > self.jumped}

    def record(self, session_id: int) -> Record | None:
        return next((record for record in self.records if record.session_id == session_id), None)

    def digest(self, nth: int) -> str:
        """Draws a refresh token: mostly the newest or an older one of a live session, else any known one, or none."""
        alive = [record for record in self.records if record.ended is None]
        newest = [record.refresh for record in alive if record.refresh]
        before = [name[2:] for record in alive for name in record.older if name.startswith("f:")]
        known = [name[2:] for name in self.names if name.startswith("f:")]
        choice = [*newest, *before, *newest, *before, *known[-2:], "never seen"]
        return choice[nth % len(choice)]

    def live(self) -> list[Record]:
        return [record for record in self.records if record.ended is None and self.due(record) is None]

    def adopts(self, asked: Token) -> bool:
        after = self.not_before is None or (asked.issued is not None and asked.issued > self.not_before[0])
        return self.adopt and after

    def signed_out(self, asked: Token) -> bool:
        """Tells whether a logout by the provider covers a token that was never seen."""
        sid, colon, _ = asked.reference.partition(":")
        if sid not in self.marks or sid == "h":
            return False
        return not colon or asked.issued is None or asked.issued <= self.marks[sid][0]

    def victims(self, leaving: Record | None) -> list[Record] | None:
        """The sessions to evict for one more; None where the policy rejects it."""
        others = [record for record in self.live() if record is not leaving]
        surplus = len(others) + 1 - self.limit if self.limit is not None else 0
        if surplus <= 0:
            return []

        def speaks(record: Record) -> bool:
            return max(record.token_expires[0], record.refresh_expires) > self.jumped

        def rank(record: Record) -> Any:
            activity = record.activity if self.policy == "evict_idle" else (0, 0)
            return speaks(record), activity, record.created, record.session_id

        others.sort(key=rank)
        if self.policy == "reject" and speaks(others[surplus - 1]):
            return None
        return others[:surplus]

    def refresh_expires(self, record: Record, lives: int | None) -> int:
        return self.jumped + lives if lives is not None else record.created[0] + TTL

    def join(
        self, record: Record, asked: Token, refresh: str | None, lives: int | None, *, moves: bool = False
    ) -> None:
        names = {f"r:{asked.reference}", f"f:{refresh or record.refresh}"}
        for name, until in list(record.older.items()):
            if until <= self.jumped:
                del record.older[name]
                if self.names.get(name) is record:
                    del self.names[name]
            elif name in names:
                del record.older[name]
        if record.reference != asked.reference:
            record.older[f"r:{record.reference}"] = record.token_expires[0]
            self.names[f"r:{asked.reference}"] = record
        if refresh is not None:
            if record.refresh not in (None, refresh):
                record.older[f"f:{record.refresh}"] = record.refresh_expires
            if moves:
                self.names[f"f:{refresh}"] = record
            elif record.refresh != refresh:
                self.names.setdefault(f"f:{refresh}", record)
            record.refresh = refresh
            record.refresh_expires = max(record.refresh_expires, self.refresh_expires(record, lives))
        record.reference, record.token = asked.reference, asked
        record.token_expires = max(record.token_expires, asked.expires)
        record.activity = self.now()

    # What can be asked

    def told_apart(self, reference: str) -> str:
        """Excludes, without logouts by a provider, a bare `sid` that other tokens have with an `auth_time`."""
        return "j2" if reference == "s1" and not self.whole else reference

    def outlives(self, asked: Token, record: Record) -> bool:
        """Tells whether an older name comes in a token that expires after all others of its session."""
        return asked.reference != record.reference and asked.expires > record.token_expires

    def claims(self, asked: Token) -> Claims:
        issued_at = None if asked.real_issued is None else asked.real_issued - self.jumped
        made = token(asked.reference, jti=asked.jti)
        expires_at = asked.real_expires - self.jumped
        return replace_claims(made, issued_at=issued_at, expires_at=expires_at, digest=asked.digest)

    def token(self, reference: str, lives: int, *, fresh: bool, iat: bool = True) -> Token:
        known = self.tokens.get(reference)
        if known is not None and not fresh and known.expires[0] > self.jumped:
            return known
        now, real = self.now(), time.time() + self.jumped
        expires, real_expires = (self.jumped + lives, now[1]), real + lives
        made = Token(reference, f"jti-{now[1]}", now if iat else None, real if iat else None, expires, real_expires)
        self.tokens[reference] = made
        return made

    def refresh_token(self, digest: str | None, lives: int | None) -> RefreshToken | None:
        return RefreshToken(digest, None if lives is None else time.time() + lives) if digest is not None else None

    def expect_opening(
        self,
        answer: Any,
        asked: Token,
        method: str,
        *,
        refresh: str | None = None,
        lives: int | None = None,
        leaving: Record | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self.forget()
        victims = self.victims(leaving)
        if victims is None:
            assert (answer.outcome, answer.session_id) == ("full", 0)
            return
        assert (answer.outcome, answer.evicted) == ("opened", len(victims))
        for victim in victims:
            self.finish(victim, EndReason.EVICTED)
        now = self.now()
        opened = Record(answer.session_id, now, now, asked, asked.reference, refresh, method, asked.expires)
        opened.refresh_expires = self.refresh_expires(opened, lives) if refresh is not None else 0
        opened.earlier = earlier
        self.records.append(opened)
        self.ids.append(opened.session_id)
        self.names[f"r:{asked.reference}"] = opened
        if refresh is not None:
            self.names[f"f:{refresh}"] = opened
        if method == "password":
            self.remember(opened, asked)
        if leaving is not None:
            self.finish(leaving, EndReason.LOGGED_OUT)
        assert self.limit is None or len(self.live()) <= self.limit

    @rule(reference=REFERENCES, jump=JUMPS, lives=LIVES, fresh=st.booleans(), iat=st.sampled_from([True, True, False]))
    def check(self, reference: str, jump: int, lives: int, fresh: bool, iat: bool) -> None:
        self.pass_time(jump)
        reference = self.told_apart(reference)
        asked = self.token(reference, lives, fresh=fresh, iat=iat)
        record = self.names.get(f"r:{reference}")
        if not self.whole and record is not None and self.outlives(asked, record):
            return
        answer = self.runner.run(self.store.check(self.claims(asked), CLIENT))
        if older := self.older(asked):
            assert (answer.outcome, answer.session_id, answer.end_reason) == ("ended", older.session_id, older.ended)
            return
        if record is None:
            if not self.adopts(asked):
                assert answer.outcome == "unknown"
            elif self.signed_out(asked):
                assert (answer.outcome, answer.end_reason) == ("ended", EndReason.LOGGED_OUT)
            else:
                self.expect_opening(answer, asked, "token")
            return
        seen_until, newer = record.token_expires, asked.expires > record.token_expires
        record.token_expires = max(record.token_expires, asked.expires)
        if self.over_by(record):
            assert (answer.outcome, answer.end_reason) == ("ended", record.ended)
            record.forget = max(record.forget, record.token_expires[0])
            return
        assert (answer.outcome, answer.session_id) == ("touched", record.session_id)
        if newer:
            record.token = asked
            if record.reference != reference:
                del record.older[f"r:{reference}"]
                record.older[f"r:{record.reference}"], record.reference = seen_until[0], reference
        record.activity = self.now()

    @rule(
        reference=REFERENCES, jump=JUMPS, lives=LIVES, fresh=st.sampled_from([True, True, False]), refresh=REFRESHES,
        refresh_lives=REFRESH_LIVES, presented=PRESENTED,
    )  # fmt: skip
    def log_in(
        self, reference: str, jump: int, lives: int, fresh: bool, refresh: str | None, refresh_lives: int | None,
        presented: str | None,
    ) -> None:  # fmt: skip
        self.pass_time(jump)
        reference = self.told_apart(reference)
        asked = self.token(reference, lives, fresh=fresh)
        given = self.refresh_token(refresh, refresh_lives)
        brought = None if presented is None else self.token(self.told_apart(presented), LONGEST, fresh=False)
        answer = self.runner.run(
            self.sign_ins.log_in(
                self.claims(asked),
                CLIENT,
                exempt=False,
                refresh=given,
                presented=None if brought is None else self.claims(brought),
            )
        )
        leaving = self.names.get(f"r:{brought.reference}") if brought is not None and not self.older(brought) else None
        if leaving is not None and self.over_by(leaving):
            leaving = None
        record = self.names.get(f"r:{reference}")
        if record is not None and self.over_by(record) is None:
            self.assert_touched(answer, record)
            record.method = "password"
            self.join(record, asked, refresh, refresh_lives, moves=True)
            self.remember(record, asked)
            if leaving is not None and leaving is not record:
                self.finish(leaving, EndReason.LOGGED_OUT)
        elif self.ended_by_the_provider(reference, record):
            assert (answer.outcome, answer.end_reason) == ("ended", EndReason.LOGGED_OUT)
        else:
            earlier = None
            if record is not None and not reference.startswith("h:"):
                kept = max(record.token_expires[0], record.earlier.kept if record.earlier else 0)
                earlier = Earlier(reference, record.ended_at, record, kept)
            self.expect_opening(
                answer, asked, "password", refresh=refresh, lives=refresh_lives, leaving=leaving, earlier=earlier
            )

    def ended_by_the_provider(self, reference: str, record: Record | None) -> bool:
        """Tells whether the provider ended the sign-in of a reference; each `auth_time` here is of long ago."""
        sid = reference.partition(":")[0]
        if sid not in self.marks or sid == "h":
            return False
        return record is None or record.created <= self.marks[sid][0]

    def assert_touched(self, answer: SignInResult, record: Record) -> None:
        assert (answer.outcome, answer.session_id, answer.end_reason) == ("touched", record.session_id, None)
        assert abs(answer.expires_at - time.time() - (record.created[0] + TTL - self.jumped)) < 30

    @rule(
        reference=REFERENCES, jump=JUMPS, lives=LIVES, fresh=st.sampled_from([True, True, False]), refresh=REFRESHES,
        refresh_lives=REFRESH_LIVES, nth=NTH, iat=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def refreshed(
        self, reference: str, jump: int, lives: int, fresh: bool, refresh: str | None, refresh_lives: int | None,
        nth: int, iat: bool,
    ) -> None:  # fmt: skip
        """Refreshes; `linked` is any session there ever was, or none."""
        self.pass_time(jump)
        reference = self.told_apart(reference)
        asked = self.token(reference, lives, fresh=fresh, iat=iat)
        given, linked = self.refresh_token(refresh, refresh_lives), self.ids[-1 - nth % len(self.ids)]
        answer = self.runner.run(
            self.sign_ins.refresh(self.claims(asked), CLIENT, exempt=False, refresh=given, linked=linked)
        )
        record = self.record(linked)
        if linked and record is None:
            # What happened to it meanwhile may have been an end.
            assert (answer.outcome, answer.session_id) == ("unknown", 0)
            return
        if record is None or self.over_by(record) is None:
            if older := self.older(asked):
                assert (answer.outcome, answer.session_id, answer.end_reason) == (
                    "ended",
                    older.session_id,
                    older.ended,
                )
                return
            record = self.names.get(f"r:{reference}", record)
        if record is not None and self.over_by(record):
            assert (answer.outcome, answer.session_id) == ("ended", record.session_id)
            assert answer.end_reason is record.ended
        elif record is not None:
            self.assert_touched(answer, record)
            self.join(record, asked, refresh, refresh_lives)
        elif not self.adopts(asked):
            assert (answer.outcome, answer.session_id) == ("unknown", 0)
        elif self.signed_out(asked):
            assert (answer.outcome, answer.end_reason) == ("ended", EndReason.LOGGED_OUT)
        else:
            self.expect_opening(answer, asked, "refresh", refresh=refresh, lives=refresh_lives)

    @precondition(lambda self: self.records or self.not_before)
    @rule(nth=st.none() | NTH, reference=st.none() | REFERENCES, jump=JUMPS, lives=LIVES, fresh=st.booleans())
    def link(self, nth: int | None, reference: str | None, jump: int, lives: int, fresh: bool) -> None:
        self.pass_time(jump)
        digest = None if nth is None else self.digest(nth)
        reference = None if reference is None else self.told_apart(reference)
        asked = None if reference is None else self.token(reference, lives, fresh=fresh)
        claims = None if asked is None else self.claims(asked)
        answer = self.runner.run(self.sign_ins.lookup("74", digest=digest, claims=claims))
        by_refresh, by_token = self.names.get(f"f:{digest}"), self.names.get(f"r:{reference}")
        if by_refresh is not None and self.over_by(by_refresh):
            assert (answer.outcome, answer.end_reason) == ("ended", by_refresh.ended)
        elif asked is not None and (older := self.older(asked)):
            assert (answer.outcome, answer.session_id, answer.end_reason) == ("ended", older.session_id, older.ended)
        elif by_token is not None and asked is not None and self.over_by(by_token):
            assert (answer.outcome, answer.session_id) == ("ended", by_token.session_id)
            assert answer.end_reason is by_token.ended
            by_token.token_expires = max(by_token.token_expires, asked.expires)
            by_token.forget = max(by_token.forget, by_token.token_expires[0])
        elif by_token is None and asked is not None and self.signed_out(asked):
            assert (answer.outcome, answer.end_reason) == ("ended", EndReason.LOGGED_OUT)
        elif record := by_refresh or by_token:
            assert (answer.outcome, answer.session_id) == ("live", record.session_id)
        else:
            assert (answer.outcome, answer.session_id) == ("unknown", 0)
            assert (answer.not_before > 0) == (self.not_before is not None)

    @precondition(lambda self: any(name.startswith("f:") for name in self.names))
    @rule(nth=NTH, jump=JUMPS, lives=LIVES, ask=st.sampled_from([True, False, False]))
    def rotate(self, nth: int, jump: int, lives: int, ask: bool) -> None:
        self.pass_time(jump)
        digest = self.digest(nth)
        record = self.names.get(f"f:{digest}")
        now = self.now()
        successor = Successor(f"n{now[1]}", f"jti-{now[1]}", time.time() + lives, f"pair {now[1]}".encode())
        answer = self.runner.run(
            self.sign_ins.lookup_refresh_token("74", digest) if ask else self.sign_ins.rotate("74", digest, successor)
        )
        if record is None:
            assert answer.outcome == "unknown"
            return
        assert answer.session_id == record.session_id
        pair = self.pairs.get(record.session_id)
        presented, replacements = self.rotated.get(record.session_id, ("", 0))
        in_window = pair is not None and pair[0] == digest and pair[2] > self.jumped
        once_more = digest == presented != record.refresh and replacements < 10 and not in_window
        if self.over_by(record):
            assert (answer.outcome, answer.end_reason) == ("ended", record.ended)
        elif (digest == record.refresh or once_more) and ask:
            assert (answer.outcome, answer.reference) == ("current", record.reference)
        elif digest == record.refresh or once_more:
            assert answer.outcome == "rotated"
            asked = Token(
                record.reference, successor.jti, now, None, (self.jumped + lives, now[1]), successor.expires_at
            )
            self.join(record, asked, successor.digest, None)
            self.rotated[record.session_id] = (digest, replacements + 1 if once_more else 0)
            self.pairs[record.session_id] = (digest, successor.sealed, self.jumped + self.window)
        elif in_window:
            assert pair is not None
            assert (answer.outcome, answer.sealed) == ("repeated", pair[1])
        else:
            assert (answer.outcome, answer.end_reason) == ("reused", EndReason.REFRESH_REUSED)
            self.finish(record, EndReason.REFRESH_REUSED)

    @precondition(lambda self: len(self.live()) > 1)
    @rule(reference=REFERENCES, jump=JUMPS, lives=LIVES, fresh=st.booleans())
    def log_out(self, reference: str, jump: int, lives: int, fresh: bool) -> None:
        self.pass_time(jump)
        reference = self.told_apart(reference)
        asked = self.token(reference, lives, fresh=fresh)
        ended = self.runner.run(self.store.log_out(self.claims(asked), CLIENT))
        if self.older(asked):
            assert ended is None
            return
        record = self.names.get(f"r:{reference}")
        if record is None:
            assert ended is None
            self.forget()
            now = self.now()
            record = Record(self.hand.owner(f"r:{reference}"), now, now, asked, reference, None, "token", asked.expires)
            self.records.append(record)
            self.ids.append(record.session_id)
            self.names[f"r:{reference}"] = record
            self.finish(record, EndReason.LOGGED_OUT)
            return
        record.token_expires = max(record.token_expires, asked.expires)
        if self.over_by(record):
            assert ended is None
            record.forget = max(record.forget, record.token_expires[0])
        else:
            assert ended == record.session_id
            self.finish(record, EndReason.LOGGED_OUT)

    @precondition(lambda self: len(self.live()) > 1)
    @rule(
        nth=NTH, jump=JUMPS, reason=st.sampled_from([EndReason.DEACTIVATED, EndReason.LOGGED_OUT])
    )  # fmt: skip
    def end(self, nth: int, jump: int, reason: EndReason) -> None:
        self.pass_time(jump)
        session_id = self.ids[-1 - nth % len(self.ids)]
        ended = self.runner.run(self.store.end("74", session_id, reason))
        record = self.record(session_id)
        assert (ended is not None) == (record is not None and self.over_by(record) is None)
        if ended is not None and record is not None:
            self.finish(record, reason)

    @precondition(lambda self: len(self.live()) > 1)
    @rule(nth=st.none() | NTH, jump=JUMPS)
    def end_all(self, nth: int | None, jump: int) -> None:
        self.pass_time(jump)
        spare = self.ids[-1 - nth % len(self.ids)] if nth is not None else 0
        count = self.runner.run(self.store.end_all("74", EndReason.REVOKED_BY_USER, spare=spare or None))
        self.settle()
        alive = self.live()
        ending = [record for record in alive if record.session_id != spare]
        assert count == len(ending)
        for record in ending:
            self.finish(record, EndReason.REVOKED_BY_USER)
        self.not_before = (self.now(), spare if len(ending) < len(alive) else 0)

    @precondition(lambda self: self.whole and len(self.live()) > 1)
    @rule(sid=st.sampled_from(["s1", "s1", "s1", "j1", "h"]), jump=JUMPS)
    def end_sid(self, sid: str, jump: int) -> None:
        self.pass_time(jump)
        count = self.runner.run(self.store.end_sid("74", sid, tokens_expire_at=time.time() + LONGEST))
        self.forget()
        self.settle()
        ending = []
        for record in self.live():
            older = [name for name, until in record.older.items() if until > self.jumped and name.startswith("r:")]
            references = [record.reference, *(name.removeprefix("r:") for name in older)]
            if any(each.partition(":")[0] == sid and len(each) < 60 for each in references):
                ending.append(record)
        assert count == len(ending)
        for record in ending:
            self.finish(record, EndReason.LOGGED_OUT)
        self.marks[sid] = (self.now(), self.jumped + LONGEST)

    @precondition(lambda self: self.records)
    @rule()
    def have_many(self) -> None:
        """The index is kept as that of a user with many sessions."""
        self.hand.index_in_key()

    @precondition(lambda self: len(self.records) >= 5)
    @rule()
    def everything_expires(self) -> None:
        """Checks that no record, name, claim or marker is left."""
        self.pass_time(10 * LONGEST)
        for _ in range(3):
            self.runner.run(self.store.sessions("74"))
        self.settle()
        self.pass_time(10 * LONGEST)
        for _ in range(3):
            self.runner.run(self.store.sessions("74"))
        self.forget()
        assert not self.records
        assert self.hand.fields() == set()
        assert not self.hand.redis.exists(*self.hand.keys()[:2])

    # What is always true

    @invariant()
    def the_lists_are_the_model_s(self) -> None:
        if not hasattr(self, "store"):
            return
        shown = self.runner.run(self.store.sessions("74", include_inactive=True))
        self.forget()
        self.settle()
        assert {session.id: session.end_reason for session in shown} == {
            record.session_id: record.ended for record in self.records if not record.hidden
        }
        live = sorted(self.live(), key=lambda record: record.activity, reverse=True)
        listed = self.runner.run(self.store.sessions("74"))
        assert [(each.id, each.reference, each.jti, each.login_method) for each in listed] == [
            (record.session_id, record.reference, record.token.jti, record.method) for record in live
        ]
        assert self.hand.indexed_live() == len(live)
        assert not self.over & {session.id for session in listed}, "an ended session never lives again"
        self.over |= {record.session_id for record in self.records if record.ended}

    @invariant()
    def the_names_are_the_model_s(self) -> None:
        stored = {name: self.hand.owner(name) for name in self.hand.fields() if name[:2] in {"r:", "f:", "p:"}}
        # What remembers a provider's word is not looked into.
        marked = {name for name in stored if name[2:].partition(":")[0] in self.marks and name not in self.names}
        expected = {name: record.session_id for name, record in self.names.items()}
        assert {name: owner for name, owner in stored.items() if name not in marked} == expected
        for record in self.records:
            assert set(self.hand.older_names(record.session_id)) == set(record.older)

    @invariant()
    def keys_stay_as_long_as_what_is_in_them(self) -> None:
        needed = [record.forget if record.ended else record.created[0] + TTL + ENDED_TTL for record in self.records]
        needed += [record.token_expires[0] for record in self.records]
        needed += [record.refresh_expires for record in self.records]
        sessions, index, _ = self.hand.keys()
        if self.records:
            assert self.hand.leaves_at(sessions) - time.time() > max(needed) - self.jumped - 30
        if ended := [record.forget for record in self.records if record.ended]:
            assert self.hand.leaves_at(index) - time.time() > max(ended) - self.jumped - 30


def run(store_url: str, *, examples: int, steps: int, everything: bool = False) -> None:
    class Here(SignInLaw):
        url = store_url
        whole = everything

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate,) if everything else (Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sign_ins_keep_the_law(store_url: str) -> None:
    run(store_url, examples=30, steps=40)


@pytest.mark.slow
def test_sign_ins_keep_the_law_for_long(store_url: str) -> None:
    run(store_url, examples=60, steps=40)


def test_sign_ins_and_a_provider_s_words_keep_the_law(store_url: str) -> None:
    run(store_url, examples=30, steps=40, everything=True)
