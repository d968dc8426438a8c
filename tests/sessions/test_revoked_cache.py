"""What a process remembers of ended sessions while the store cannot be asked."""

from __future__ import annotations

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.revoked_cache import Ended, Over


def claims(user: str = "74", reference: str = "a", *, issued_at: float | None = 100.0) -> Claims:
    return Claims(
        user=user,
        reference=reference,
        jti=None,
        roles=(),
        is_admin=False,
        issued_at=issued_at,
        expires_at=1e9,
        claims={},
    )


def has_gaps(ended: Ended) -> bool:
    return ended.has_gaps


def test_a_session_is_known_by_the_references_of_its_tokens() -> None:
    ended = Ended()
    ended.saw("74", "a", 1)
    ended.saw("74", "b", 1)
    ended.saw("75", "a", 2)
    assert (ended.session_of("74", "a"), ended.session_of("74", "x"), ended.session_of("9", "a")) == (1, None, None)
    ended.tell("74", 1, EndReason.EVICTED)
    for reference in "ab":
        assert ended.over(claims(reference=reference)) == Over(EndReason.EVICTED)
    assert ended.over(claims("75")) is None
    assert ended.over(claims(reference="never seen")) is None


def test_an_end_that_was_told_before_its_token_was_seen_counts() -> None:
    ended = Ended()
    ended.tell("74", 1, EndReason.REVOKED_BY_ADMIN)
    ended.saw("74", "a", 1)
    assert ended.over(claims()) == Over(EndReason.REVOKED_BY_ADMIN)


def test_a_refused_reference_ends_the_session_for_its_other_tokens() -> None:
    ended = Ended()
    ended.saw("74", "a", 1)
    ended.saw("74", "b", 1)
    ended.tell_reference("74", "a", EndReason.IDLE)
    assert ended.over(claims(reference="b")) == Over(EndReason.IDLE)


def test_the_first_reason_stays() -> None:
    ended = Ended()
    ended.tell("74", 1, EndReason.EVICTED)
    ended.tell("74", 1, EndReason.LOGGED_OUT)
    ended.saw("74", "a", 1)
    assert ended.over(claims()) == Over(EndReason.EVICTED)


def test_the_end_of_all_spares_one_and_what_is_newer() -> None:
    ended = Ended()
    ended.saw("74", "spared", 1)
    ended.saw("74", "other", 2)
    ended.tell_all("74", 150_000_000, 1, EndReason.REVOKED_BY_USER)
    ended.saw("74", "since", 3)
    assert ended.over(claims(reference="spared")) is None
    assert ended.over(claims(reference="since")) is None
    assert ended.over(claims(reference="other", issued_at=900)) == Over(EndReason.REVOKED_BY_USER)
    assert ended.over(claims(reference="unseen", issued_at=150)) == Over(EndReason.REVOKED_BY_USER)
    assert ended.over(claims(reference="unseen", issued_at=None)) == Over(EndReason.REVOKED_BY_USER)
    assert ended.over(claims(reference="unseen", issued_at=151)) is None


def test_a_sign_in_of_a_provider_is_over_with_all_its_sessions() -> None:
    ended = Ended()
    ended.saw("74", "s:100", 1)
    ended.tell_sid("74", "s", EndReason.LOGGED_OUT)
    assert ended.over(claims(reference="s")) == Over(EndReason.LOGGED_OUT)
    assert ended.over(claims(reference="s:100")) == Over(EndReason.LOGGED_OUT)
    assert ended.over(claims(reference="t")) is None


def test_it_is_bounded_and_what_it_forgot_is_a_gap_for_as_long_as_it_matters() -> None:
    now = [0.0]
    ended = Ended(kept_seconds=60, most_users=10, clock=lambda: now[0])
    for number in range(100):
        ended.saw(str(number), "a", number)
    assert (repr(ended), ended.has_gaps) == ("<Ended [10 users]>", False)
    for number in range(11):
        ended.tell(f"ended {number}", number, EndReason.EVICTED)
    assert ended.has_gaps
    now[0] = 61.0
    assert not has_gaps(ended)
    ended = Ended(kept_seconds=60)
    for number in range(3000):
        ended.saw("one", str(number), number)
    assert not ended.has_gaps
    for number in range(3000):
        ended.tell("one", number, EndReason.EVICTED)
    assert ended.has_gaps


def test_without_users_it_remembers_nothing() -> None:
    ended = Ended(most_users=0)
    ended.saw("74", "a", 1)
    ended.tell("74", 1, EndReason.EVICTED)
    ended.tell_all("74", 10**15, None, EndReason.EVICTED)
    assert (ended.over(claims()), ended.has_gaps, repr(ended)) == (None, False, "<Ended [0 users]>")
