"""The shape of the code in numbers: rooms, imports, names, and the size of files and functions.

`python -m tests.test_house [ROOT …]` prints them, of this checkout or of the ones that are named.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.sources import ROOT, Function, Source, sources
from tests.test_words import opens_with_a_clause

LIMITS: Final[Mapping[str, int]] = {
    "files at the top of gatekeeper/": 12,
    "import depth": 18,
    "most imports out of one file": 30,
    "import cycles": 0,
    "most arguments of one function": 16,
    "class names used more than once": 0,
    "% of docstrings that open with a clause": 0,
    "lines of a function, 99th percentile": 40,
    "lines of the longest function": 90,
    "lines of the longest file": 450,
}


class Measured(NamedTuple):
    """A number, and what makes it so large."""

    number: int
    because: str


class House:
    """Both packages of one checkout."""

    def __init__(self, root: Path) -> None:
        self.files = {source.name: source for source in sources(root)}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Every module with those of ours that it imports, also inside functions and under `TYPE_CHECKING`."""
        return {name: set(self._imports(source)) - {name} for name, source in self.files.items()}

    def _imports(self, source: Source) -> Iterator[str]:
        for node in source.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.files)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in self.files:
                        yield inner
                    elif node.module in self.files:
                        yield node.module

    @cached_property
    def groups(self) -> list[list[str]]:
        """Modules that import each other, directly or by way of others, together; most are alone. A group comes after
        all that it imports (Tarjan's strongly connected components)."""
        order: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[list[str]] = []

        def visit(name: str) -> None:
            order[name] = low[name] = len(order)
            stack.append(name)
            for other in sorted(self.imports[name]):
                if other not in order:
                    visit(other)
                if other in stack:
                    low[name] = min(low[name], low[other])
            if low[name] == order[name]:
                place = stack.index(name)
                found.append(stack[place:])
                del stack[place:]

        for name in self.files:
            if name not in order:
                visit(name)
        return found

    @cached_property
    def deepest(self) -> list[str]:
        """The longest chain of imports, the importer first. Modules that import each other are one step."""
        chains: dict[str, list[str]] = {}
        for group in self.groups:
            below = {other for name in group for other in self.imports[name]} - set(group)
            chain = [" = ".join(group), *max((chains[other] for other in below), key=len, default=[])]
            chains |= dict.fromkeys(group, chain)
        return max(chains.values(), key=len)

    @cached_property
    def homonyms(self) -> dict[str, list[str]]:
        """The class names that stand for more than one class, with the places."""
        places: dict[str, list[str]] = defaultdict(list)
        for source in self.files.values():
            for node in source.classes:
                places[node.name].append(f"{source.path}:{node.lineno}")
        return {name: found for name, found in sorted(places.items()) if len(found) > 1}

    @cached_property
    def functions(self) -> list[tuple[str, Function]]:
        """Every function, with the place where it stands."""
        files = self.files.values()
        return [(f"{source.path}:{node.lineno} {node.name}", node) for source in files for node in source.functions]

    def measure(self) -> dict[str, Measured]:
        """The numbers of `LIMITS`, in its order."""
        top = [source.path.name for source in self.files.values() if source.path.parent == Path("gatekeeper")]
        widest = max(self.imports, key=lambda name: len(self.imports[name]))
        cycles = [group for group in self.groups if len(group) > 1]
        docstrings = [text.text for source in self.files.values() for text in source.docstrings]
        clauses = sum(opens_with_a_clause(text) for text in docstrings)
        lengths = sorted(Measured(_length(node), place) for place, node in self.functions)
        found = [
            Measured(len(top), " ".join(top)),
            Measured(len(self.deepest) - 1, " > ".join(self.deepest)),
            Measured(len(self.imports[widest]), str(self.files[widest].path)),
            Measured(len(cycles), "; ".join(" ".join(group) for group in cycles)),
            max(Measured(_arguments(node), place) for place, node in self.functions),
            Measured(len(self.homonyms), "; ".join(f"{name}: {' '.join(at)}" for name, at in self.homonyms.items())),
            Measured(-(-100 * clauses // len(docstrings)), f"{clauses} of {len(docstrings)}"),
            lengths[int(len(lengths) * 0.99)],
            lengths[-1],
            max(Measured(source.lines, str(source.path)) for source in self.files.values()),
        ]
        return dict(zip(LIMITS, found, strict=True))


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _arguments(node: Function) -> int:
    """How many a caller may give; `self` and `cls` are not among them."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([each for each in given if each.arg not in {"self", "cls"}])


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    return House(ROOT).measure()


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_keeps_its_limit(measured: dict[str, Measured], name: str) -> None:
    number, because = measured[name]
    limit = LIMITS[name]
    assert number <= limit, f"{name}: {number}, and {limit} is the limit: {because}"


def test_chance_is_a_generator_of_our_own() -> None:
    # That of the module belongs to the application: one that seeds it would know our pauses, and tests that seed it
    # would not repeat.
    found = [
        f"{source.name}:{node.lineno}"
        for source in House(ROOT).files.values()
        for node in source.nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr not in {"Random", "SystemRandom"}
    ]
    assert not found


def _table(roots: list[Path]) -> None:
    houses = [House(root) for root in roots]
    columns = [house.measure() for house in houses]
    print(f"{'':42}", *(f"{root.resolve().name:>10}" for root in roots), f"{'limit':>8}")
    sizes = [f"{sum(source.lines for source in house.files.values())}/{len(house.files)}" for house in houses]
    print(f"{'lines/files':42}", *(f"{size:>10}" for size in sizes))
    for name, limit in LIMITS.items():
        print(f"{name:42}", *(f"{column[name].number:10}" for column in columns), f"{limit:8}")
    for root, column in zip(roots, columns, strict=True):
        print(f"\n{root.resolve()}")
        for name, (number, because) in column.items():
            print(f"  {name}: {number}: {because}")


if __name__ == "__main__":
    _table([Path(each) for each in sys.argv[1:]] or [ROOT])
