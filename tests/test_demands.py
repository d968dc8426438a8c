"""What is promised is shown by a test that cites it; what is not yet, is known.

`tests/demands.txt` lists the demands on the session APIs. `T01`…`T30` are the attacks by token and `J01`…`J05` those by
key set. A test cites an id in its name, docstring or a comment.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_TESTS = Path(__file__).parent


def _ids(text: str) -> set[str]:
    """`B-01…B-15 C-37` as single ids."""
    found: set[str] = set()
    for item in text.split():
        first, _, last = item.partition("…")
        prefix, low, high = first[:-2], int(first[-2:]), int((last or first)[-2:])
        found |= {f"{prefix}{number:02}" for number in range(low, high + 1)}
    return found


PROMISED = _ids("B-01…B-15 C-10…C-14 C-37 D-01…D-11 E-06…E-07")

# Cited already, for what lies below them (the store, the rules that every dialect inherits); the demand itself waits
# for its paths.
PARTLY = _ids("A-01 A-04 A-22 A-24 C-03 C-07 C-35 E-02")

# What no test shows yet. Take an id out when a test cites it; the rest waits for the other three dialects, for tokens
# that Gatekeeper issues, and for what is not software.
REST = _ids(
    "A-02…A-03 A-05…A-21 A-23 A-25…A-28 "
    "C-01…C-02 C-05…C-06 C-08…C-09 C-15…C-19 C-22 C-24…C-34 C-36 C-38…C-39 "
    "D-12…D-15 E-01 E-03…E-05 E-08…E-13"
)

ATTACKS = _ids("T01…T30 J01…J05")

# Needs what is not there yet: T27 the timing of refresh tokens and logins.
UNSHOWN_ATTACKS = _ids("T27")


@cache
def _cited() -> frozenset[str]:
    found: set[str] = set()
    for path in _TESTS.rglob("*.py"):
        if path != Path(__file__):
            found.update(re.findall(r"(?<![\w-])(?:[A-E]-\d\d|[TJ]\d\d)(?![\w-])", path.read_text(encoding="utf-8")))
    return frozenset(found)


def _demands() -> list[str]:
    lines = (_TESTS / "demands.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def _listed(ids: set[str]) -> str:
    return " ".join(sorted(ids))


def test_every_demand_stands_once_and_has_a_title() -> None:
    demands = _demands()
    assert demands == sorted(demands)
    assert set(demands) == _ids("A-01…A-28 B-01…B-15 C-01…C-39 D-01…D-15 E-01…E-13")
    for line in (_TESTS / "demands.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[A-E]-\d\d \S.*", line)


def test_every_demand_of_this_release_is_cited_by_a_test() -> None:
    assert _listed(PROMISED - _cited()) == ""
    assert PROMISED.isdisjoint(PARTLY | REST)
    assert _listed(PARTLY - _cited()) == "", "cited no more: it belongs to REST"


def test_the_demands_that_no_test_cites_are_the_known_rest() -> None:
    uncited = set(_demands()) - _cited()
    assert _listed(uncited - REST) == "", "cited by no test"
    assert _listed(REST - uncited) == "", "cited after all: take it out of REST"


def test_the_attacks_that_no_test_cites_are_the_known_rest() -> None:
    uncited = ATTACKS - _cited()
    assert _listed(uncited - UNSHOWN_ATTACKS) == "", "cited by no test"
    assert _listed(UNSHOWN_ATTACKS - uncited) == "", "cited after all: take it out of UNSHOWN_ATTACKS"


def test_no_test_cites_an_id_that_does_not_exist() -> None:
    assert _listed(set(_cited()) - set(_demands()) - ATTACKS) == ""
