"""Reads a file of `NAME=value` lines: `gatekeeper --env-file FILE`.

The format is that of systemd's `EnvironmentFile=` and of Docker's `--env-file`, except that Docker takes quotes for a
part of the value. A line that these two or a shell may read in another way is refused where that is likely a mistake:

- blank lines, and lines that begin with `#` or `;`, are skipped; a comment has a line of its own
- `export ` before a name is skipped
- a value may stand in single quotes, where every character is literal, or in double quotes, where a backslash escapes
  `"`, `\\`, `$`, a backtick and a line break; a quoted value may run over several lines
- nothing is expanded: `$HOME` is five characters
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

from gatekeeper.errors import ConfigError
from gatekeeper.settings.types import MASK, read_file

_ASSIGNMENT: Final = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=")
_SKIPPED: Final = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\n|\Z)")
_QUOTED: Final = {"'": re.compile(r"'([^']*)'"), '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)}
_ESCAPED: Final = re.compile(r'\\(["\\$`\n])')
# A line's first word is shown if it looks like a variable's name: anything else may be a piece of a secret.
_NAME_LIKE: Final = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?![A-Za-z0-9_])")
_FORM: Final = "accepted: NAME=value, with the value in quotes if needed, or a comment that begins with #"


def load_env_file(path: Path, environ: MutableMapping[str, str]) -> frozenset[str]:
    """Set the variables of a file in `environ`, except those that it has already, and return the names that were set.

    Raises `ConfigError` with a line for every problem; `environ` is then unchanged. No value is shown.
    """
    values = read_env_file(path)
    added = {name: value for name, value in values.items() if name not in environ}
    environ.update(added)
    return frozenset(added)


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file by name. Raises `ConfigError` with a line for every problem."""
    try:
        text = read_file(path)
    except ValueError as error:
        raise ConfigError([f"--env-file: read {str(path)!r}, which {error}; accepted: a text file"]) from None
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems = []
    for number, name, value, problem in _entries(text.removeprefix("\ufeff").replace("\r\n", "\n")):
        if not problem and name in lines:
            problem = f"read {name}, which line {lines[name]} sets too; accepted: each name once"
        if problem:
            problems.append(f"{path}, line {number}: {problem}")
        else:
            values[name], lines[name] = value, number
    if problems:
        raise ConfigError(problems)
    return values


def _entries(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, name, value and problem (empty if there is none) of every line that is not skipped."""
    position = 0
    while position < len(text):
        number = text.count("\n", 0, position) + 1
        if skipped := _SKIPPED.match(text, position):
            position = skipped.end()
            continue
        line_end = text.find("\n", position)
        line_end = len(text) if line_end < 0 else line_end
        assignment = _ASSIGNMENT.match(text, position, line_end)
        if assignment is None:
            yield number, "", "", f"read {_shown(text[position:line_end])}; {_FORM}"
            position = line_end + 1
            continue
        name = assignment[1]
        value, end, problem = _value(text, assignment.end(), line_end)
        if "\0" in value:
            problem = "has a NUL character; accepted: text without it"
        yield number, name, value, f"{name} {problem}" if problem else ""
        position = end + 1


def _value(text: str, start: int, line_end: int) -> tuple[str, int, str]:
    """Return the value that begins at `start`, the position of its line's end, and a problem or an empty text."""
    quote = text[start : start + 1]
    if quote not in ("'", '"'):
        value = text[start:line_end].rstrip(" \t")
        return value, line_end, _problem_without_quotes(value)
    quoted = _QUOTED[quote].match(text, start)
    if quoted is None:
        return "", line_end, f"begins with {quote}, which is never closed; accepted: a value between two {quote}"
    end = text.find("\n", quoted.end())
    end = len(text) if end < 0 else end
    if text[quoted.end() : end].strip(" \t"):
        return "", end, f"has characters after the closing {quote}; accepted: a comment on a line of its own"
    if quote == "'":
        return quoted[1], end, ""
    return _ESCAPED.sub(lambda found: found[1].replace("\n", ""), quoted[1]), end, ""


def _problem_without_quotes(value: str) -> str:
    if value.startswith((" ", "\t")):
        return "has a space after the =; accepted: NAME=value without it, or a value in quotes"
    if re.search(r"[ \t]#", value):
        return "has a # after a space; accepted: a comment on a line of its own, or the whole value in quotes"
    if value.endswith("\\"):
        return "ends with a backslash; accepted: a value on one line, or in quotes"
    return ""


def _shown(line: str) -> str:
    name = _NAME_LIKE.match(line)
    return f"{name[1]} without = right behind it" if name else MASK
