"""The shape of errors on forwarded paths, where an operator gives one: a JSON template with words in braces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from gatekeeper.dialects.base import Wording
from gatekeeper.models import Problem

_WORD: Final = re.compile(r"\{([a-z_]+)\}")


class ErrorTemplate:
    """A template for error bodies. A string that is one word alone becomes its value: `{status}` a number, a word
    without a value null. Inside of a longer string a word becomes its text. Raises `ValueError` for what is no JSON."""

    def __init__(self, text: str) -> None:
        self._template = json.loads(text)

    def __repr__(self) -> str:
        return f"<ErrorTemplate {json.dumps(self._template)}>"

    def fill(self, problem: Problem, wording: Wording) -> Any:
        """Return the body of an error response."""
        return _filled(
            self._template,
            {
                "status": problem.reason.status,
                "code": problem.reason.code,
                "detail": wording.say(problem.text),
                "reason": problem.end_reason.value if problem.end_reason is not None else None,
                "request_id": wording.request_id,
            },
        )


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {_text(name, words): _filled(member, words) for name, member in value.items()}
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if not isinstance(value, str):
        return value
    alone = _WORD.fullmatch(value)
    return words.get(alone[1]) if alone else _text(value, words)


def _text(text: str, words: Mapping[str, Any]) -> str:
    # In one pass: what is put in may have braces of its own.
    return _WORD.sub(lambda found: "" if (word := words.get(found[1])) is None else str(word), text)
