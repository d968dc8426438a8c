"""Ended sessions in the memory of a process, for an outage of the store."""

from __future__ import annotations

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.revoked_cache import EndedSession, RevokedCache


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


def has_gaps(cache: RevokedCache) -> bool:
    return cache.has_gaps


def test_a_session_is_known_by_the_references_of_its_tokens() -> None:
    cache = RevokedCache()
    cache.add_live("74", "a", 1)
    cache.add_live("74", "b", 1)
    cache.add_live("75", "a", 2)
    assert (cache.session_of("74", "a"), cache.session_of("74", "x"), cache.session_of("9", "a")) == (1, None, None)
    cache.add_ended("74", 1, EndReason.EVICTED)
    for reference in "ab":
        assert cache.find_ended(claims(reference=reference)) == EndedSession(EndReason.EVICTED)
    assert cache.find_ended(claims("75")) is None
    assert cache.find_ended(claims(reference="never seen")) is None


def test_an_end_that_was_told_before_its_token_was_seen_counts() -> None:
    cache = RevokedCache()
    cache.add_ended("74", 1, EndReason.REVOKED_BY_ADMIN)
    cache.add_live("74", "a", 1)
    assert cache.find_ended(claims()) == EndedSession(EndReason.REVOKED_BY_ADMIN)


def test_a_refused_reference_ends_the_session_for_its_other_tokens() -> None:
    cache = RevokedCache()
    cache.add_live("74", "a", 1)
    cache.add_live("74", "b", 1)
    cache.add_ended_reference("74", "a", EndReason.IDLE)
    assert cache.find_ended(claims(reference="b")) == EndedSession(EndReason.IDLE)


def test_the_first_reason_stays() -> None:
    cache = RevokedCache()
    cache.add_ended("74", 1, EndReason.EVICTED)
    cache.add_ended("74", 1, EndReason.LOGGED_OUT)
    cache.add_live("74", "a", 1)
    assert cache.find_ended(claims()) == EndedSession(EndReason.EVICTED)


def test_the_end_of_all_spares_one_and_what_is_newer() -> None:
    cache = RevokedCache()
    cache.add_live("74", "spared", 1)
    cache.add_live("74", "other", 2)
    cache.add_all_ended("74", 150_000_000, 1, EndReason.REVOKED_BY_USER)
    cache.add_live("74", "since", 3)
    assert cache.find_ended(claims(reference="spared")) is None
    assert cache.find_ended(claims(reference="since")) is None
    assert cache.find_ended(claims(reference="other", issued_at=900)) == EndedSession(EndReason.REVOKED_BY_USER)
    assert cache.find_ended(claims(reference="unseen", issued_at=150)) == EndedSession(EndReason.REVOKED_BY_USER)
    assert cache.find_ended(claims(reference="unseen", issued_at=None)) == EndedSession(EndReason.REVOKED_BY_USER)
    assert cache.find_ended(claims(reference="unseen", issued_at=151)) is None


def test_a_sign_in_of_a_provider_is_over_with_all_its_sessions() -> None:
    cache = RevokedCache()
    cache.add_live("74", "s:100", 1)
    cache.add_ended_sid("74", "s", EndReason.LOGGED_OUT)
    assert cache.find_ended(claims(reference="s")) == EndedSession(EndReason.LOGGED_OUT)
    assert cache.find_ended(claims(reference="s:100")) == EndedSession(EndReason.LOGGED_OUT)
    assert cache.find_ended(claims(reference="t")) is None


def test_it_is_bounded_and_what_it_forgot_is_a_gap_for_as_long_as_it_matters() -> None:
    now = [0.0]
    cache = RevokedCache(kept_seconds=60, most_users=10, clock=lambda: now[0])
    for number in range(100):
        cache.add_live(str(number), "a", number)
    assert (repr(cache), cache.has_gaps) == ("<RevokedCache [10 users]>", False)
    for number in range(11):
        cache.add_ended(f"ended {number}", number, EndReason.EVICTED)
    assert cache.has_gaps
    now[0] = 61.0
    assert not has_gaps(cache)
    cache = RevokedCache(kept_seconds=60)
    for number in range(3000):
        cache.add_live("one", str(number), number)
    assert not cache.has_gaps
    for number in range(3000):
        cache.add_ended("one", number, EndReason.EVICTED)
    assert cache.has_gaps


def test_without_users_it_remembers_nothing() -> None:
    cache = RevokedCache(most_users=0)
    cache.add_live("74", "a", 1)
    cache.add_ended("74", 1, EndReason.EVICTED)
    cache.add_all_ended("74", 10**15, None, EndReason.EVICTED)
    assert (cache.find_ended(claims()), cache.has_gaps, repr(cache)) == (None, False, "<RevokedCache [0 users]>")
