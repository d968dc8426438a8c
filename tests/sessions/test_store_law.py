"""A model of the law of a session in Python, checked against the store (S01, S04, S16, S30).

Time is the sum of the jumps that the rules make; between them real microseconds go by, which only order events.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
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
from gatekeeper.sessions.keys import Policy, Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from tests.conftest import RULES
from tests.sessions.by_hand import CLIENT, Hand, token
from tests.waiting import HANG_SECONDS

IDLE, TTL, ENDED_TTL = 1_000, 3_000, 2_000
JUMPS = st.sampled_from([0, 0, 0, 0, 300, 700, 1_000, 2_100])
LIVES = st.sampled_from([400, 1_500, 9_000])
TOKENS = st.integers(0, 9)
Instant = tuple[int, int]
"""Jumped seconds, then the order of events within them."""


@dataclass
class Token:
    issued: Instant | None
    real_issued: float | None
    real_expires: float
    expires: int


@dataclass
class Record:
    session_id: int
    created: Instant
    activity: Instant
    token_expires: int
    exempt: bool
    ended: EndReason | None = None
    hidden: bool = False
    forget: float = math.inf
    name: str = ""


class Law(RuleBasedStateMachine):
    """Each rule is one call; its result, and the lists after it, must be those of the model."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.hand = Hand(self.url)
        self.hand.redis.flushall()
        self.runner = asyncio.Runner()
        self.jumped = 0
        self.tick = 0
        self.tokens: dict[int, Token] = {}
        self.records: dict[int, Record] = {}
        self.not_before: tuple[Instant, int, EndReason] | None = None
        self.over: set[int] = set()
        self.exempted = False

    def teardown(self) -> None:
        if hasattr(self, "store_client"):
            self.runner.run(self.store_client.aclose())
        self.runner.close()
        self.hand.redis.close()

    @initialize(
        limit=st.sampled_from([1, 2, 3, None]),
        policy=st.sampled_from(["evict_idle", "evict_oldest", "reject"]),
        idle=st.sampled_from([IDLE, IDLE, None]),
    )
    def begin(self, limit: int | None, policy: Policy, idle: int | None) -> None:
        self.limit, self.policy, self.idle = limit, policy, idle
        rules: Rules = msgspec_replace(
            session_seconds=TTL, idle_seconds=idle, ended_seconds=ENDED_TTL, device_limit=limit, policy=policy
        )
        self.store_client = StoreClient(self.url, timeout_seconds=HANG_SECONDS)
        self.store = SessionStore(ScriptRunner(self.store_client, key_prefix="gk:", rules=rules))

    # What the model knows

    def now(self) -> Instant:
        self.tick += 1
        return (self.jumped, self.tick)

    def pass_time(self, seconds: int) -> None:
        self.jumped += seconds
        if seconds:
            self.hand.let_pass(seconds)

    def due(self, record: Record) -> EndReason | None:
        causes: list[tuple[Instant, int, EndReason]] = []
        if self.not_before is not None:
            instant, spared, reason = self.not_before
            if record.created <= instant and record.session_id != spared:
                causes.append((instant, 0, reason))
        if record.created[0] + TTL <= self.jumped:
            causes.append(((record.created[0] + TTL, record.created[1]), 1, EndReason.EXPIRED))
        if self.idle is not None and not record.exempt and record.activity[0] + self.idle <= self.jumped:
            causes.append(((record.activity[0] + self.idle, record.activity[1]), 2, EndReason.IDLE))
        return min(causes)[2] if causes else None

    def finish(self, record: Record, reason: EndReason, *, hidden: bool) -> None:
        record.ended, record.hidden = reason, hidden
        record.forget = max(self.jumped + ENDED_TTL, record.token_expires)

    def settle(self) -> None:
        for record in self.records.values():
            reason = None if record.ended else self.due(record)
            if reason is not None:
                self.finish(record, reason, hidden=reason is EndReason.REVOKED_BY_USER)

    def forget(self) -> None:
        for reference in [name for name, record in self.records.items() if record.forget <= self.jumped]:
            del self.records[reference]

    def live(self) -> list[Record]:
        return [record for record in self.records.values() if record.ended is None and self.due(record) is None]

    def adopts(self, asked: Token) -> bool:
        return self.not_before is None or (asked.issued is not None and asked.issued > self.not_before[0])

    def victims(self) -> list[Record] | None:
        """The sessions to evict for one more; None where the policy rejects it."""
        others = self.live()
        surplus = len(others) + 1 - self.limit if self.limit is not None else 0
        if surplus <= 0:
            return []

        def rank(record: Record) -> Any:
            activity = record.activity if self.policy == "evict_idle" else (0, 0)
            return record.token_expires > self.jumped, activity, record.created, record.session_id

        others.sort(key=rank)
        if self.policy == "reject" and others[surplus - 1].token_expires > self.jumped:
            return None
        return others[:surplus]

    # What can be asked

    def claims(self, reference: int, asked: Token) -> Claims:
        made = token(f"r{reference}")
        issued_at = None if asked.real_issued is None else asked.real_issued - self.jumped
        return replace_claims(made, issued_at=issued_at, expires_at=asked.real_expires - self.jumped)

    def token(self, reference: int, lives: int, *, fresh: bool, iat: bool) -> Token:
        known = self.tokens.get(reference)
        if known is not None and not fresh and known.expires > self.jumped:
            return known
        now, real = self.now(), time.time() + self.jumped
        # Later tokens of a reference carry on as a refreshed one would
        made = Token(now if iat else None, real if iat else None, real + lives, self.jumped + lives)
        self.tokens[reference] = made
        return made

    @rule(
        reference=TOKENS, jump=JUMPS, lives=LIVES, fresh=st.booleans(), iat=st.sampled_from([True, True, False]),
        exempt=st.sampled_from([False, False, False, True]),
    )  # fmt: skip
    def check(self, reference: int, jump: int, lives: int, fresh: bool, iat: bool, exempt: bool) -> None:
        self.pass_time(jump)
        asked = self.token(reference, lives, fresh=fresh, iat=iat)
        self.exempted |= exempt
        checked = self.runner.run(self.store.check(self.claims(reference, asked), CLIENT, exempt=exempt))
        record = self.records.get(reference)
        if record is None:
            self.expect_opening(reference, asked, checked, exempt=exempt)
            return
        assert checked.session_id == record.session_id
        record.token_expires = max(record.token_expires, asked.expires)
        if record.ended:
            record.forget = max(record.forget, record.token_expires)
            assert (checked.outcome, checked.end_reason) == ("ended", record.ended)
            return
        reason = self.due(record)
        if reason is None:
            assert checked.outcome == "touched"
            assert record.session_id not in self.over
            record.activity, record.exempt = self.now(), exempt
        else:
            assert (checked.outcome, checked.end_reason) == ("ended", reason)

    def expect_opening(self, reference: int, asked: Token, checked: Any, *, exempt: bool) -> None:
        if not self.adopts(asked):
            assert (checked.outcome, checked.session_id) == ("unknown", 0)
            return
        self.forget()
        victims: list[Record] | None = [] if exempt else self.victims()
        if victims is None:
            assert checked.outcome == "full"
            return
        assert (checked.outcome, checked.evicted) == ("opened", len(victims))
        for victim in victims:
            self.finish(victim, EndReason.EVICTED, hidden=False)
        now = self.now()
        self.records[reference] = Record(checked.session_id, now, now, asked.expires, exempt)
        if not exempt and self.limit is not None:
            assert len(self.live()) <= self.limit

    @precondition(lambda self: self.records)
    @rule(
        choice=st.integers(0, 9),
        jump=JUMPS,
        reason=st.sampled_from([EndReason.REVOKED_BY_USER, EndReason.DEACTIVATED, EndReason.REPORTED]),
    )
    def end(self, choice: int, jump: int, reason: EndReason) -> None:
        record = list(self.records.values())[choice % len(self.records)]
        self.pass_time(jump)
        ended = self.runner.run(self.store.end("74", record.session_id, reason))
        if record.ended is None and self.due(record) is None:
            assert ended
            self.finish(record, reason, hidden=reason is EndReason.REVOKED_BY_USER)
        elif record.ended is EndReason.DEACTIVATED and not record.hidden and reason is EndReason.REVOKED_BY_USER:
            assert ended
            record.hidden = True
        else:
            assert not ended

    @precondition(lambda self: self.records)
    @rule(choice=st.integers(0, 9), jump=JUMPS, name=st.sampled_from(["", "laptop", "phone"]))
    def rename(self, choice: int, jump: int, name: str) -> None:
        record = list(self.records.values())[choice % len(self.records)]
        self.pass_time(jump)
        renamed = self.runner.run(self.store.rename("74", record.session_id, name))
        assert (renamed is not None) is (record.ended is None and self.due(record) is None)
        if renamed is not None:
            assert (renamed.given_name, renamed.is_active) == (name, True)
            record.name = name

    @rule(spare=st.none() | st.integers(0, 9), jump=JUMPS)
    def end_all(self, spare: int | None, jump: int) -> None:
        spared = list(self.records.values())[spare % len(self.records)] if spare is not None and self.records else None
        self.pass_time(jump)
        count = self.runner.run(
            self.store.end_all("74", EndReason.REVOKED_BY_USER, spare=spared.session_id if spared is not None else None)
        )
        self.settle()
        alive = self.live()
        assert count == len([record for record in alive if record is not spared])
        for record in alive:
            if record is not spared:
                self.finish(record, EndReason.REVOKED_BY_USER, hidden=True)
        spared_id = spared.session_id if spared in alive and spared is not None else 0
        self.not_before = (self.now(), spared_id, EndReason.REVOKED_BY_USER)

    @rule(reference=TOKENS, jump=JUMPS, lives=LIVES, fresh=st.booleans())
    def log_out(self, reference: int, jump: int, lives: int, fresh: bool) -> None:
        self.pass_time(jump)
        asked = self.token(reference, lives, fresh=fresh, iat=True)
        ended = self.runner.run(self.store.log_out(self.claims(reference, asked), CLIENT))
        record = self.records.get(reference)
        if record is None:
            assert ended is None
            self.forget()
            [made] = [
                session
                for session in self.runner.run(self.store.sessions("74", include_inactive=True))
                if session.reference == f"r{reference}"
            ]
            now = self.now()
            record = self.records[reference] = Record(made.id, now, now, asked.expires, exempt=False)
            self.finish(record, EndReason.LOGGED_OUT, hidden=False)
            return
        record.token_expires = max(record.token_expires, asked.expires)
        if record.ended:
            assert ended is None
            record.forget = max(record.forget, record.token_expires)
        elif self.due(record) is None:
            assert ended == record.session_id
            self.finish(record, EndReason.LOGGED_OUT, hidden=False)
        else:
            assert ended is None

    @rule(jump=JUMPS)
    def clean_up(self, jump: int) -> None:
        """Cleans up: the count is that of the sessions that leave the lists, all idle or expired (C-08)."""
        self.pass_time(jump)
        self.forget()
        reasons = {EndReason.IDLE, EndReason.EXPIRED}
        over = [
            record
            for record in self.records.values()
            if not record.hidden and (record.ended or self.due(record)) in reasons
        ]
        cleaned = self.runner.run(self.store.clean_up())
        self.settle()
        if self.exempted:
            # Who was exempt when somebody looked, and is no longer, may be over before the next look.
            shown = {each.id for each in self.runner.run(self.store.sessions("74", include_inactive=True))}
            over = [record for record in over if record.session_id not in shown]
        assert cleaned == len(over)
        for record in over:
            record.hidden = True

    @precondition(lambda self: self.records)
    @rule()
    def have_many(self) -> None:
        """The index is kept as that of a user with many sessions."""
        self.hand.index_in_key()

    # What is always true

    @invariant()
    def the_lists_are_the_model_s(self) -> None:
        if not hasattr(self, "store"):
            return
        shown = self.runner.run(self.store.sessions("74", include_inactive=True))
        self.forget()
        self.settle()
        expected = [record for record in self.records.values() if not record.hidden]
        assert {session.id: session.end_reason for session in shown} == {
            record.session_id: record.ended for record in expected
        }
        everything = self.runner.run(self.store.sessions("74", include_inactive=True, include_hidden=True))
        assert {session.id: (session.end_reason, session.given_name) for session in everything} == {
            record.session_id: (record.ended, record.name) for record in self.records.values()
        }
        assert self.hand.named() == len([record for record in self.records.values() if record.name])
        live = sorted(self.live(), key=lambda record: record.activity, reverse=True)
        ids = [session.id for session in self.runner.run(self.store.sessions("74"))]
        assert ids == [record.session_id for record in live]
        assert self.hand.records() == self.hand.references() == len(self.records)
        assert self.hand.indexed_live() == len(live)
        ended = {record.session_id for record in self.records.values() if record.ended}
        assert not self.over & set(ids), "an ended session never lives again"
        self.over |= ended
        if ended:
            assert self.hand.redis.exists(self.hand.keys()[1]), "the loss of all records must show"
        elif not self.records:
            assert not self.hand.redis.exists(*self.hand.keys()[:2])


def msgspec_replace(**changes: Any) -> Rules:
    return Rules(**{**{name: getattr(RULES, name) for name in Rules.__struct_fields__}, **changes})


def replace_claims(claims: Claims, **changes: Any) -> Claims:
    return Claims(**{**{name: getattr(claims, name) for name in Claims.__struct_fields__}, **changes})


def run(store_url: str, *, examples: int, steps: int) -> None:
    class Here(Law):
        url = store_url

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_store_keeps_the_law(store_url: str) -> None:
    run(store_url, examples=40, steps=20)


@pytest.mark.slow
def test_the_store_keeps_the_law_for_long(store_url: str) -> None:
    run(store_url, examples=250, steps=20)
