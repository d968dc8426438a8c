"""The words of the code: what can be measured of "plain English, and one word for one thing".

A docstring begins with a verb or with a noun. The words of `PLAIN` are written as the field writes them. A log line is
`<component> <what happened>: <why>`. The rest of it is for the eye of a reader.

`python -m tests.test_words` prints every place that breaks a rule.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.sources import ROOT, Source, sources

# The private word, and what to write. For a party that has a name it is the name: client, caller, user, operator,
# backend, process.
PLAIN: Final[Mapping[str, str]] = {
    "whoever": "the party's name",
    "whomever": "the party's name",
    "nobody": "the party's name: no client, no process",
    "somebody": "the party's name",
    "anybody": "the party's name",
    "whom": "the party's name",
    "trail": "audit log",
    "lane": "queue",
    "lanes": "queues",
    "wire": "connection, bytes, network",
    "carriage": "forwarding",
    "heed": "read, obey",
    "noted": "recorded, remembered",
    "told": "informed, given, reported; or say it in the active voice: the operator reads",
    "visit": "request, sign-in",
    "visits": "requests, sign-ins",
}
# In names only, for prose needs the verb: "the backend answers", "this means".
PLAIN_IN_NAMES: Final[Mapping[str, str]] = {
    "answer": "response",
    "answers": "responses",
    "answered": "responded; response",
    "means": "resources, backends, what they are",
    "slot": "key, user",
    "slots": "keys, users",
}
# In prose only: nouns that are verbs too, known by what stands before or behind them.
_ARTICLE: Final = r"(?:an?|the|its|their|our|each|every|no|one|this|that|whole|late|own|first|last|\w+'s)"
_BEHIND: Final = r"(?:of|from|that|which|is|are|was|were|has|have)"
PLAIN_IN_PROSE: Final[Mapping[str, tuple[str, str]]] = {
    "answer (noun)": (rf"{_ARTICLE} answers?|answers? {_BEHIND}", "response"),
    "end (noun)": (
        r"(?:an?|its|their|each|every|no) ends? (?:of|is|was|that)|ends of (?:a |the )?(?:session|sign-in|stream)s?",
        "revocation, close; or the verb: the session ends",
    ),
}
EXCEPTIONS: Final[Mapping[tuple[str, str], str]] = {
    ("gatekeeper/dialects/", "answer"): "`Answer` is a public name: docs/dialects.md",
    ("gatekeeper/web/", "answer"): "`Answer` of the dialects",
    ("middleware/gatekeeper_middleware/", "answer"): "`answer_fault` is a public name: docs/python.md",
    ("middleware/gatekeeper_middleware/", "slots"): "an argument of `dataclass`",
    ("gatekeeper/store/", "slot"): "a hash slot of Redis Cluster",
    ("gatekeeper/store/", "slots"): "the hash slots of Redis Cluster",
    ("gatekeeper/sessions/", "slot"): "the hash slot that holds the keys of a user",
}

_CLAUSE: Final = re.compile(
    r"(?:(?:of|to|by|for|with|from|in|on|at|as|about) )?"
    r"(?:what|who|whom|whose|whether|where|when|how|why|which|whoever|whatever|whenever|wherever)\b",
    re.IGNORECASE,
)

# A log line begins with one of these.
COMPONENTS: Final = (
    "access log",
    "application",
    "audit log",
    "gatekeeper",
    "backend",
    "client",
    "configuration",
    "embedded store",
    "housekeeping",
    "key set",
    "listener",
    "log",
    "login check",
    "middleware",
    "open streams",
    "outbox",
    "request",
    "revocation channel",
    "server",
    "session store",
    "upstream",
    "worker",
)
# Lines that are not free text: their words are promised (docs/operations.md), or a program looks for them.
PROMISED_LINES: Final[Mapping[str, str]] = {
    "audit": "an audit event, as a line of the log",
    "internal error": "a bug, with its traceback: the words of the response too",
    "too many connections": "docs/operations.md tells an operator to look for it",
}
_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_LOGGERS: Final = frozenset({"_log", "log", "_logger", "logger"})


class Finding(NamedTuple):
    """A place that breaks a rule."""

    rule: str
    path: str
    line: int
    text: str


def opens_with_a_clause(docstring: str) -> bool:
    """Tells a docstring that begins with a relative or interrogative word from one with a verb or a noun."""
    return _CLAUSE.match(docstring.strip()) is not None


def openings(source: Source) -> Iterator[Finding]:
    for line, text in source.docstrings:
        if opens_with_a_clause(text):
            yield Finding("opening", str(source.path), line, text.strip().split("\n", 1)[0])


def split(identifier: str) -> list[str]:
    """`end_reasonOf` as `end`, `reason` and `of`."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def words(source: Source) -> Iterator[Finding]:
    """Private words in names, and in docstrings, comments, log lines and errors."""
    path = str(source.path)
    excepted = {word for (where, word) in EXCEPTIONS if path.startswith(where)}
    for line, name in source.identifiers:
        if name != "__slots__":
            found = {each for each in split(name) if each in PLAIN or each in PLAIN_IN_NAMES}
            yield from (Finding(word, path, line, name) for word in found - excepted)
    for line, text in (*source.strings, *source.comments):
        prose = {each for each in split(text) if each in PLAIN}
        yield from (Finding(word, path, line, text.strip()) for word in prose - excepted)
        for noun, (pattern, _) in PLAIN_IN_PROSE.items():
            for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
                yield Finding(noun, path, line, match[0])


def log_lines(source: Source) -> Iterator[Finding]:
    """Those that are not of the form."""
    for node in source.nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id in _LOGGERS:
            first = node.args[0] if node.args else None
            text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
            fault = fault_of_line(text)
            if fault:
                yield Finding("log line", str(source.path), node.lineno, f"{text!r}: {fault}")


def fault_of_line(text: str) -> str:
    """Names the fault in the form of a log line; empty if there is none."""
    if text in PROMISED_LINES:
        return ""
    if not text:
        return "no literal"
    component = next((each for each in COMPONENTS if text.startswith(f"{each} ")), None)
    if component is None:
        return "begins with no component"
    what, _, why = text.partition(": ")
    if what == component or not re.fullmatch(r"[^:]+", what):
        return "does not say what happened"
    if ": " in why:
        return "gives two reasons"
    return "ends with a stop" if text.endswith((".", "!", ":")) else ""


RULES: Final = {"openings": openings, "words": words, "log lines": log_lines}


@pytest.fixture(scope="module")
def found() -> Mapping[str, list[Finding]]:
    files = sources()
    return {name: [each for source in files for each in rule(source)] for name, rule in RULES.items()}


@pytest.mark.parametrize("rule", RULES)
def test_the_words_are_plain(found: Mapping[str, list[Finding]], rule: str) -> None:
    places = [f"{path}:{line}: {name}: {text}" for name, path, line, text in found[rule]]
    assert not places, "\n".join(places)


@pytest.mark.parametrize(
    ("docstring", "clause"),
    [
        ("What a token says.", True),
        ("Whether it is there.", True),
        ("Of whom nothing is known.", True),
        ("\n    How it went.", True),
        ("The claims of a token.", False),
        ("Whisper to the store.", False),
        ("Returns whether it is there.", False),
    ],
)
def test_a_clause_is_known_by_its_first_word(docstring: str, *, clause: bool) -> None:
    assert opens_with_a_clause(docstring) is clause


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("session store unavailable: %s", True),
        ("server shutting down", True),
        ("audit", True),
        ("key set", False),
        ("The key set is empty", False),
        ("key set rejected: %s: %s", False),
        ("key set rejected.", False),
        ("", False),
    ],
)
def test_a_log_line_is_known_by_its_form(line: str, *, good: bool) -> None:
    assert (not fault_of_line(line)) is good


def test_every_exception_is_needed() -> None:
    for where, word in EXCEPTIONS:
        files = [source for source in sources() if str(source.path).startswith(where)]
        assert any(word in split(name) for source in files for _, name in source.identifiers), (where, word)


def _print(root: Path) -> None:
    files = sources(root)
    for rule in RULES.values():
        every = [each for source in files for each in rule(source)]
        for name, path, line, text in every:
            print(f"{path}:{line}: {name}: {' '.join(text.split())[:100]}")
        for name, count in Counter(each.rule for each in every).most_common():
            print(f"{count:6} {name}")


if __name__ == "__main__":
    _print(Path(sys.argv[1]) if sys.argv[1:] else ROOT)
