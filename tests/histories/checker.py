"""Checks a history of what clients saw: operations with their beginning and end on one clock, under whatever faults.

An operation took effect at one instant between its beginning and its end. So one that began after another had ended
came later; of two that overlap nothing is known. A response that never came, or that says 503, tells nothing: what was
asked may have happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal

import msgspec

Kind = Literal["login", "request", "end", "end_all", "list", "refresh"]
Result = Literal["done", "refused", "unknown"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a client. `session` is the one that it acts with, or that it opened; `of` the one that an `end`
    concerns; `listed` what a list shows, where `?` is a session whose name is not known. `presented` and `successor`
    are refresh tokens.
    """

    kind: Kind
    user: str
    began: float
    ended: float
    result: Result
    session: str = ""
    of: str = ""
    listed: frozenset[str] = frozenset()
    presented: str = ""
    successor: str = ""

    @property
    def is_admission(self) -> bool:
        """Whether its session was live. A logout is done as well where its own session was over already."""
        return self.result == "done" and self.kind != "login" and self.of != self.session


def violations(history: Sequence[Operation], *, limit: int, window: float = 60.0) -> list[str]:
    """Every breach of an invariant, in words. `window` is that in which a refresh token gets the same pair again."""
    return [
        *_admitted_after_an_end(history),
        *_revived(history),
        *_over_the_limit(history, limit),
        *_several_successors(history, window),
        *_lists_that_disagree(history),
    ]


def _ends(history: Sequence[Operation]) -> dict[str, float]:
    """When the end of a session was first acknowledged, by session."""
    opened: defaultdict[str, list[Operation]] = defaultdict(list)
    for each in history:
        if each.kind == "login" and each.result == "done":
            opened[each.user].append(each)
    found: dict[str, float] = {}
    for each in history:
        if each.result != "done":
            continue
        if each.kind == "end":
            over: Iterable[str] = (each.of,)
        elif each.kind == "end_all":
            over = (login.session for login in opened[each.user] if login.ended < each.began)
        else:
            continue
        for session in over:
            found[session] = min(each.ended, found.get(session, each.ended))
    return found


def _admitted_after_an_end(history: Sequence[Operation]) -> Iterator[str]:
    ends = _ends(history)
    for each in history:
        if each.is_admission and each.began > ends.get(each.session, float("inf")):
            yield f"admitted after an acknowledged end: {each}"


def _revived(history: Sequence[Operation]) -> Iterator[str]:
    refused: dict[str, float] = {}
    for each in history:
        if each.result == "refused" and each.session:
            refused[each.session] = min(each.ended, refused.get(each.session, each.ended))
    for each in history:
        if each.is_admission and each.began > refused.get(each.session, float("inf")):
            yield f"revived: {each}"


def _certain(history: Sequence[Operation]) -> dict[str, tuple[str, float, float]]:
    """The user of each session, and from when until when it was certainly live: from the end of its opening to the
    beginning of its last admission."""
    found: dict[str, tuple[str, float, float]] = {}
    for each in history:
        if each.kind == "login" and each.result == "done":
            found[each.session] = (each.user, each.ended, each.ended)
    for each in history:
        if each.is_admission and each.session in found:
            user, since, until = found[each.session]
            found[each.session] = (user, since, max(until, each.began))
    return found


def _over_the_limit(history: Sequence[Operation], limit: int) -> Iterator[str]:
    by_user: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for user, since, until in _certain(history).values():
        # At one instant, an end comes before a beginning.
        by_user[user] += [(since, 1), (until, -1)] if until > since else []
    for user, steps in by_user.items():
        live = 0
        for at, step in sorted(steps):
            live += step
            if live > limit:
                yield f"{live} live sessions of {user} at {at}"
    for each in history:
        if each.kind == "list" and len(each.listed) > limit:
            yield f"a list of {len(each.listed)} live sessions: {each}"


def _several_successors(history: Sequence[Operation], window: float) -> Iterator[str]:
    """Within the window, a refresh token has one successor; after it another one, while that is unused."""
    refreshes: defaultdict[str, list[Operation]] = defaultdict(list)
    for each in history:
        if each.kind == "refresh" and each.result == "done":
            refreshes[each.presented].append(each)
    for presented, found in refreshes.items():
        for first, second in combinations(sorted(found, key=lambda each: each.ended), 2):
            if first.successor != second.successor and second.ended < first.began + window:
                yield f"2 successors of the refresh token {presented}"
            if any(used.ended < second.began for used in refreshes.get(first.successor, ())):
                yield f"a refresh token whose successor was used: {second}"


def _may_have_been_ended(asked: Operation, history: Sequence[Operation]) -> bool:
    """Tells whether an operation of the same user that ends or evicts sessions was under way beside `asked`; one
    without a known result may have been carried out at any later time."""
    return any(
        each.user == asked.user
        and each.kind not in {"list", "request"}
        and each.began <= asked.ended
        and (each.ended >= asked.began or each.result not in {"done", "refused"})
        for each in history
    )


def _lists_that_disagree(history: Sequence[Operation]) -> Iterator[str]:
    ends, certain = _ends(history), _certain(history)
    of_user: defaultdict[str, list[str]] = defaultdict(list)
    for session, (user, _, _) in certain.items():
        of_user[user].append(session)
    for each in history:
        if each.kind != "list" or each.result != "done":
            continue
        # Between its verdict and its list, another client may have ended or evicted the session.
        if each.session not in each.listed and not _may_have_been_ended(each, history):
            yield f"a list without the session that asked: {each}"
        for session in of_user[each.user]:
            _, since, until = certain[session]
            if session in each.listed and each.began > ends.get(session, float("inf")):
                yield f"a list with the ended session {session}: {each}"
            if session not in each.listed and "?" not in each.listed and since < each.began and each.ended < until:
                yield f"a list without the live session {session}: {each}"
