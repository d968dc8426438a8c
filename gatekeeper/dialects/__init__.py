"""The session APIs that Gatekeeper speaks. `DIALECTS` is the one registry: a new dialect is one file and one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gatekeeper.dialects import express, mockstream
from gatekeeper.dialects.base import Dialect, Problem, detail_and_code

DIALECTS: Final[Mapping[str, Dialect]] = {dialect.name: dialect for dialect in (express, mockstream)}


def fastapi_word(problem: Problem, **_: Any) -> dict[str, Any]:
    """The shape of errors before or without a dialect."""
    return detail_and_code(problem)


ERROR_SHAPES: Final[Mapping[str, Callable[..., Any]]] = {
    "fastapi": fastapi_word,
    **{name: dialect.word for name, dialect in DIALECTS.items()},
}
