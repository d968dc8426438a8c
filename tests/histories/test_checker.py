"""The checker finds each violation in a forged history, and none in a sound one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.histories.checker import Operation, violations


def op(kind: Any, at: float, session: str = "a", **fields: Any) -> Operation:
    usual: dict[str, Any] = {"user": "u", "result": "done", "began": at, "ended": at + 0.5, "session": session}
    return Operation(kind=kind, **(usual | fields))


SOUND = [
    op("login", 0, "a"),
    op("login", 1, "b"),
    op("request", 2, "a"),
    op("list", 3, "a", listed=frozenset({"a", "b"})),
    op("refresh", 4, "b", presented="r1", successor="r2"),
    op("refresh", 4.2, "b", presented="r1", successor="r2"),
    op("end", 6, "a", of="b"),
    op("request", 7, "b", result="refused"),
    op("request", 8, "b", result="unknown"),
    op("list", 9, "a", listed=frozenset({"a"})),
    op("login", 10, "c"),
    op("request", 11, "c"),
    op("end_all", 12, "c"),
    # It may have come before the end.
    op("request", 12.2, "a"),
    op("request", 13, "a", result="refused"),
]


def test_a_sound_history_has_no_violation() -> None:
    assert violations(SOUND, limit=2) == []


@pytest.mark.parametrize(
    ("forged", "found"),
    [
        ([op("request", 7.5, "b")], "admitted after"),
        ([op("refresh", 14, "c", presented="r8", successor="r9")], "admitted after"),
        ([op("request", 20, "d", result="refused"), op("request", 21, "d")], "revived"),
        ([op("login", 1.5, "d"), op("request", 3, "d"), op("request", 5.6, "b")], "live sessions of u"),
        ([op("list", 2.6, "a", listed=frozenset({"a", "b", "d"}))], "a list of 3"),
        ([op("refresh", 4.4, "b", presented="r1", successor="another")], "2 successors"),
        (
            [
                op("refresh", 4.3, "b", presented="r2", successor="r3"),
                op("refresh", 5, "b", presented="r1", successor="r2"),
            ],
            "was used",
        ),
        ([op("list", 9.1, "a", listed=frozenset({"a", "b"}))], "a list with the ended session b"),
        ([op("list", 2.6, "a", listed=frozenset({"a"})), op("request", 5, "b")], "a list without the live session b"),
        ([op("list", 2.6, "a", listed=frozenset({"b"}))], "a list without the session that asked"),
    ],
)
def test_each_violation_is_found(forged: list[Operation], found: str) -> None:
    assert [each for each in violations([*SOUND, *forged], limit=2) if found in each]


def test_after_the_window_an_unused_successor_may_be_replaced() -> None:
    late = [op("login", 20, "d"), *(op("refresh", 20 + n, "d", presented="s1", successor=f"t{n}") for n in (1, 62))]
    assert violations([*SOUND, *late], limit=3) == []
    assert violations([*SOUND, *late], limit=3, window=100.0) != []


def test_an_end_that_was_not_acknowledged_forbids_nothing() -> None:
    doubtful = [msgspec.structs.replace(each, result="unknown") if each.kind == "end" else each for each in SOUND[:7]]
    assert violations([*doubtful, op("request", 9, "b")], limit=2) == []
