"""No deadline of a test measures the machine: what must happen is waited for as long as `tests.waiting` says, and no
duration is compared with a number from above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import HANG_SECONDS

_TESTS = Path(__file__).parent
_CLOCKS = frozenset({"monotonic", "perf_counter", "monotonic_ns", "perf_counter_ns"})
_DURATIONS = frozenset({"took", "elapsed", "duration", "waited"})
# Calls whose first argument, or whose second, is a number of seconds after which they give up.
_FIRST = frozenset({"asyncio.timeout"})
_SECOND = frozenset({"asyncio.wait_for"})
# Their time-outs are what is tried.
_PRODUCT = frozenset({"http_fetcher", "open_client"})
# They return when nothing has come, and raise nothing.
_POLLS = frozenset({"asyncio.wait", "pubsub.get_message"})
_NAMED = frozenset({"timeout", "seconds", "open_timeout", "close_timeout", "socket_timeout"})


class _Deadlines(ast.NodeVisitor):
    """Collects the lines of a file that measure the machine."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self._expected = 0

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        """What is inside `pytest.raises(TimeoutError)` or `suppress(TimeoutError)` waits for nothing to happen."""
        about = [ast.unparse(item.context_expr) for item in node.items]
        expected = any(("raises" in each or "suppress" in each) and "Timeout" in each for each in about)
        self._expected += expected
        self.generic_visit(node)
        self._expected -= expected

    visit_AsyncWith = visit_With  # noqa: N815 - the name is ast's

    def visit_Try(self, node: ast.Try) -> None:
        """So is what is inside a `try` that catches it."""
        expected = any(handler.type and "Timeout" in ast.unparse(handler.type) for handler in node.handlers)
        self._expected += expected
        self.generic_visit(node)
        self._expected -= expected

    def visit_Call(self, node: ast.Call) -> None:
        """A deadline that is a small number."""
        name = ast.unparse(node.func)
        bounds = [word.value for word in node.keywords if word.arg in _NAMED]
        bounds += node.args[:1] if name in _FIRST or _waits(node) else []
        bounds += node.args[1:2] if name in _SECOND else []
        is_fine = self._expected or name in {*_PRODUCT, *_POLLS, "timedelta"} or name[:1].isupper()
        if not is_fine and any(map(_is_small, bounds)):
            self.found.append(
                (node.lineno, f"{name}: a deadline that a slow machine misses: use HANG_SECONDS of tests.waiting")
            )
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """A duration with an upper bound."""
        for compared in (each for each in ast.walk(node.test) if isinstance(each, ast.Compare)):
            sides = [compared.left, *compared.comparators]
            for below, how, above in zip(sides, compared.ops, sides[1:], strict=False):
                low = below if isinstance(how, ast.Lt | ast.LtE) else above
                if isinstance(how, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and _is_duration(low):
                    self.found.append((node.lineno, "a duration with an upper bound"))
        self.generic_visit(node)


def _waits(node: ast.Call) -> bool:
    """Whether it waits for a thread or a future."""
    return isinstance(node.func, ast.Attribute) and node.func.attr in {"join", "result"} and len(node.args) == 1


def _is_small(bound: ast.expr) -> bool:
    return isinstance(bound, ast.Constant) and isinstance(bound.value, int | float) and bound.value < HANG_SECONDS


def _is_duration(side: ast.expr) -> bool:
    names = {each.attr for each in ast.walk(side) if isinstance(each, ast.Attribute)}
    names |= {each.id for each in ast.walk(side) if isinstance(each, ast.Name)}
    has_clock = any(
        isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr in _CLOCKS
        for each in ast.walk(side)
    )
    is_difference = any(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Sub) for each in ast.walk(side))
    return (has_clock and is_difference) or not names.isdisjoint(_DURATIONS)


def _measured(path: Path) -> Iterator[str]:
    visitor = _Deadlines()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return (f"{path.relative_to(_TESTS)}:{line}: {what}" for line, what in visitor.found)


def test_no_test_measures_the_machine() -> None:
    found = [line for path in sorted(_TESTS.rglob("*.py")) for line in _measured(path)]
    assert found == [], "\n".join(found)
