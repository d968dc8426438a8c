"""Every demand is shown by a test that cites it; the rest is known, with the reason.

`tests/demands.txt` lists the demands on the session APIs. A test cites an id in a comment, its docstring or its name;
`tests/golden/<id>.http` shows one by its requests and responses. `python -m tests.test_demands` writes
`docs/demands.md`. Attacks and faults are in tests/test_citations.py.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_TESTS = _ROOT / "tests"
_PAGE = _ROOT / "docs" / "demands.md"
_ID = re.compile(r"(?<![\w-])[A-E]-\d\d(?![\w-])")
_MOST_SHOWN = 4

DIALECTS = {"A": "django", "B": "express", "C": "fastapi", "D": "mockstream", "E": "users_me"}


def ids(text: str) -> set[str]:
    """`B-01…B-15 C-37` as single ids."""
    found: set[str] = set()
    for item in text.split():
        first, _, last = item.partition("…")
        prefix, low, high = first[:-2], int(first[-2:]), int((last or first)[-2:])
        found |= {f"{prefix}{number:02}" for number in range(low, high + 1)}
    return found


# Demands that no test shows yet, or ever will, and the reason. Take an id out when a test cites it.
_REASONS = {
    "client code: comes with the TypeScript client": "C-26…C-28",
    "comes with the mirrors for SQL and Elasticsearch": "A-26 C-33 E-09",
    "web pages: come with the session page": "E-10…E-11",
    "operation and its documentation: come with the tools for operators": "C-29 C-31 C-36 D-12",
    "no software: project planning, or a document that is not available": "A-28 D-14…D-15 E-13",
    "not about requests: it asks for the test suite of the dialect": "E-12",
}
REST: Mapping[str, str] = {each: reason for reason, text in _REASONS.items() for each in ids(text)}

# Shown in part: what is still to come.
PARTLY: Mapping[str, str] = {
    "C-25": "a client without the defects of the sample",
}


@cache
def _demands() -> Mapping[str, str]:
    lines = (_TESTS / "demands.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


@cache
def _shown() -> Mapping[str, list[str]]:
    """Where every demand is shown: golden files first, then tests as `file::name`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(_TESTS.glob("golden/*.http")):
        found[path.stem].append(f"tests/golden/{path.name}")
    for path in sorted(_TESTS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path != Path(__file__) and _ID.search(text):
            lines = text.splitlines()
            for function in _tests_of(ast.parse(text)):
                first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
                cited = _ID.findall("\n".join(lines[first - 1 : function.end_lineno]))
                for each in sorted(set(cited)):
                    found[each].append(f"{path.relative_to(_ROOT).as_posix()}::{function.name}")
    return found


def _tests_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function for function in functions if function.name.startswith("test_")]


def _listed(found: AbstractSet[str]) -> str:
    return " ".join(sorted(found))


def page() -> str:
    """`docs/demands.md`."""
    lines = [
        "# Demands",
        "",
        "The demands of the five session APIs, and the tests that show each. The five documents that asked for them",
        "are called seed A to seed E in code and tests. [dialects.md](dialects.md) describes the dialects.",
        "`python -m tests.test_demands` writes this page.",
        "",
        f"{len(_demands()) - len(REST)} of {len(_demands())} demands are shown by a test.",
    ]
    for letter, dialect in DIALECTS.items():
        lines += ["", f"## {letter}: `{dialect}`", "", "| id | demand | shown by |", "| --- | --- | --- |"]
        lines += [f"| {each} | {title} | {_cell(each)} |" for each, title in _demands().items() if each[0] == letter]
    return "\n".join(lines) + "\n"


def _cell(demand: str) -> str:
    if demand in REST:
        return f"– {REST[demand]}"
    places = _shown()[demand]
    shown = [_link(place) for place in places[:_MOST_SHOWN]]
    shown += ["and more"] if len(places) > _MOST_SHOWN else []
    return "<br>".join(shown) + (f"<br>still to come: {PARTLY[demand]}" if demand in PARTLY else "")


def _link(place: str) -> str:
    path, _, name = place.partition("::")
    words = f"`{path}`" if not name else name.removeprefix("test_").replace("_", " ")
    return f"[{words}](../{path})"


def test_every_demand_stands_once_and_has_a_title() -> None:
    lines = (_TESTS / "demands.txt").read_text(encoding="utf-8").splitlines()
    demands = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert demands == sorted(demands)
    assert set(demands) == ids("A-01…A-28 B-01…B-15 C-01…C-39 D-01…D-15 E-01…E-13")
    for line in lines:
        assert not line or line.startswith("#") or re.fullmatch(r"[A-E]-\d\d \S.*", line)


def test_the_demands_that_no_test_cites_are_the_known_rest() -> None:
    uncited = set(_demands()) - _shown().keys()
    assert _listed(uncited - REST.keys()) == "", "cited by no test"
    assert _listed(REST.keys() - uncited) == "", "cited after all: take it out of _REASONS"
    assert _listed(PARTLY.keys() - _shown().keys()) == "", "cited no more: it belongs to _REASONS"


def test_no_test_cites_an_id_that_does_not_exist() -> None:
    assert _listed(set(_shown()) - _demands().keys()) == ""


def test_the_page_on_demands_is_what_the_tests_say() -> None:
    assert _PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_demands"


if __name__ == "__main__":
    _PAGE.write_text(page(), encoding="utf-8")
