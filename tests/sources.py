"""The Python files of both packages, parsed, for `test_house.py` and `test_words.py`."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("gatekeeper", "middleware/gatekeeper_middleware")

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Text(NamedTuple):
    """A docstring, a comment, another string or a name, and the line where it begins."""

    line: int
    text: str


class Source:
    """One file. `path` is relative to the checkout, `name` that of the module."""

    def __init__(self, path: Path, name: str, text: str) -> None:
        self.path = path
        self.name = name
        self.text = text
        self.tree = ast.parse(text)

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in self.nodes if isinstance(node, ast.ClassDef))

    @property
    def docstrings(self) -> Iterator[Text]:
        """Those of the module, its classes, functions and attributes: every string that is a statement of its own."""
        for node in self.nodes:
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield Text(node.lineno, node.value.value)

    @property
    def comments(self) -> Iterator[Text]:
        for token in self._tokens:
            if token.type == tokenize.COMMENT:
                yield Text(token.start[0], token.string)

    @property
    def strings(self) -> Iterator[Text]:
        """All of them, docstrings included; of an f-string its literal parts."""
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield Text(node.lineno, node.value)

    @property
    def identifiers(self) -> Iterator[Text]:
        for token in self._tokens:
            if token.type == tokenize.NAME:
                yield Text(token.start[0], token.string)

    @cached_property
    def _tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))


@cache
def sources(root: Path = ROOT) -> list[Source]:
    """Every file of both packages under `root`, a checkout."""
    found: list[Source] = []
    for package in PACKAGES:
        base = (root / package).parent
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            found.append(Source(path.relative_to(root), name, path.read_text(encoding="utf-8")))
    return found
