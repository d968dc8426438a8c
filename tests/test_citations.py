"""Everything that code, tests and pages cite can be looked up in a clone.

Rules (`rule 4.4`) stand in docs/decisions.md, attacks and faults (`T10`, `R15`, `P0-S6`) in docs/attacks.md, demands
(`C-13`) in docs/demands.md. RFCs, CVEs and advisories are written in one form, links between pages resolve, and files
that are named exist.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_ROOMS = ("gatekeeper", "middleware", "tests", "bench", "docs", "config")
_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_KINDS = {".py", ".lua", ".md", ".ts", ".mjs", ".js", ".yaml", ".env"}
# Texts of others, and files that tests and benchmarks make.
_FOREIGN = {"vectors", "golden", "node_modules", "__pycache__", ".work", "results"}

_RULE = re.compile(r"\b[Rr]ules?\s+(\d+\.\d+(?:(?:,\s+|\s+and\s+|,\s+and\s+|\s+to\s+)\d+\.\d+)*)")
_ATTACK = re.compile(r"(?<![\w/.'\"#-])(?:P0-S\d+|[TJSHPFIDUWXAC]\d\d|[RKBJ]\d{1,2}|T[12]|C[12])(?![\w-])")
_DEMAND = re.compile(r"(?<![\w-])[A-E]-\d\d(?![\w-])")
_RFC = re.compile(r"(?:\bRFC|\bRfc|\brfc ?)(?=[-_ ]?\d)\S*(?: [^\s,;:()]+)?")
_RFC_FORM = re.compile(r"RFC \d{3,5}(?:bis)?(?![\d-])")
_RFC_SECTION = re.compile(r"RFC \d+,?\s+(?:§|[Ss]ec\.|Section|par|chapter)|§\s*\d")
_CVE = re.compile(r"\b(?:CVE|cve|GHSA|ghsa)[-_ ]?\d\S*|\bGHSA-[\w-]+")
_CVE_FORM = re.compile(r"(?:CVE-\d{4}-\d{4,7}|GHSA(?:-[23456789cfghjmpqrvwx]{4}){3})\b")
_ELSEWHERE = re.compile(r"\b[Cc]ontract(?:,| sections?\b| \d)|\bseed-demands\b|\bshared/\w+\.md\b")
_PATH = re.compile(
    r"(?<![\w/.*-])(?:gatekeeper|middleware|tests|bench|docs|config)/[\w./-]+\.(?:py|lua|md|http|ts|mjs|yaml|env|txt|svg)\b"
)
_ROW = re.compile(r"^\| ((?:P0-)?[A-Z]-?\d+) \|", re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|<(?:img|source)[^>]* (?:src|srcset)=\"([^\"]+)\"")

# A file that a page tells its reader to write.
_TO_BE_WRITTEN = {"gatekeeper/dialects/harbour.py"}


def _words(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of what a person wrote to be read: all of a page, comments and docstrings of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                yield node.body[0].lineno, docstring


def _files(root: Path) -> list[Path]:
    found = [root / name for name in _PAGES if (root / name).exists()]
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in _KINDS and path.is_file() and not _FOREIGN & set(path.relative_to(root).parts):
                found.append(path)
    return found


def _rules(root: Path) -> list[str]:
    page = (root / "docs/decisions.md").read_text(encoding="utf-8")
    return re.findall(r"^### Rule (\d+\.\d+): \S", page, re.MULTILINE)


def _rows(root: Path, name: str) -> list[str]:
    """First cells of all tables of a page, where they are ids."""
    page = (root / "docs" / name).read_text(encoding="utf-8")
    return _ROW.findall(page)


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.fullmatch(r"#{1,6} (.*)", line)):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            found.add(slug if slug not in found else f"{slug}-1")
    return found


def _links(root: Path, page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for match in _LINK.finditer(re.sub(r"`[^`\n]*`", "``", text)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in _anchors(to)):
            yield f"{page.relative_to(root)}: link to {target}"


def _wrong(text: str, known: set[str], root: Path) -> set[str]:
    """Citations of `text` that cannot be looked up."""
    cited = {each for match in _RULE.findall(text) for each in re.findall(r"\d+\.\d+", match)}
    cited |= set(_ATTACK.findall(text)) | set(_DEMAND.findall(text))
    wrong = cited - known
    wrong |= {each for each in _RFC.findall(text) if not _RFC_FORM.match(each)}
    wrong |= {each for each in _CVE.findall(text) if not _CVE_FORM.match(each)}
    wrong |= set(_RFC_SECTION.findall(text)) | set(_ELSEWHERE.findall(text))
    return wrong | {each for each in set(_PATH.findall(text)) - _TO_BE_WRITTEN if not (root / each).exists()}


def faults(root: Path) -> list[str]:
    """Citations below `root` that cannot be looked up, as `file:line: what`."""
    known = set(_rules(root)) | set(_rows(root, "attacks.md")) | set(_rows(root, "demands.md"))
    found: list[str] = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        # Reading tokens is slow, and most files have nothing to look for.
        if _wrong(path.read_text(encoding="utf-8"), known, root):
            for number, text in _words(path):
                found += [f"{name}:{number}: {each}" for each in sorted(_wrong(text, known, root))]
        if path.suffix == ".md":
            found += _links(root, path)
    return found


def test_everything_that_is_cited_can_be_looked_up() -> None:
    assert faults(_ROOT) == []


def test_an_attack_stands_under_not_tried_yet_until_a_test_cites_it() -> None:
    page = (_ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    tried, _, rest = page.partition("\n## Not tried yet\n")
    cited: set[str] = set()
    for path in _files(_ROOT):
        if path.is_relative_to(_ROOT / "tests") and path != Path(__file__):
            cited.update(_ATTACK.findall(path.read_text(encoding="utf-8")))
    # What other software does is a measurement: not all of it can be shown by a test of ours.
    assert {each for each in _ROW.findall(tried) if not each.startswith("P0-")} - cited == set(), "cited by no test"
    assert set(_ROW.findall(rest)) & cited == set(), "cited after all: move it to its table"


def test_an_id_stands_once() -> None:
    for ids in (_rules(_ROOT), _rows(_ROOT, "attacks.md"), _rows(_ROOT, "demands.md")):
        assert len(ids) > 50
        assert [each for each in set(ids) if ids.count(each) > 1] == []


def test_rules_are_numbered_without_a_gap() -> None:
    chapters: dict[int, list[int]] = {}
    for rule in _rules(_ROOT):
        chapter, number = map(int, rule.split("."))
        chapters.setdefault(chapter, []).append(number)
    assert list(chapters) == list(range(1, len(chapters) + 1))
    for numbers in chapters.values():
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A tree with the three pages of ids and a package, where everything can be looked up."""
    for name in ("decisions.md", "attacks.md", "demands.md"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", (_ROOT / "docs" / name).read_text(encoding="utf-8"))
        (tmp_path / "docs" / name).write_text(re.sub(_PATH, "", text), encoding="utf-8")
    shutil.copytree(_ROOT / "gatekeeper/store", tmp_path / "gatekeeper/store", ignore=lambda *_: {"__pycache__"})
    for path in _files(tmp_path):
        if path.suffix != ".md":
            path.write_text(re.sub(_PATH, "", path.read_text(encoding="utf-8")), encoding="utf-8")
    return tmp_path


_GOOD = [
    "T10, R15, P0-S6, C-13",
    "rule 4.4; rules 4.3, 4.5 and 4.10",
    "RFC 9110 section 5.5; RFC 9112",
    "CVE-2022-29217, GHSA-w7vc-732c-9m39",
    "docs/attacks.md",
]
_WRONG = [
    ("T31", "T31"),
    ("P0-S20", "P0-S20"),
    ("R24", "R24"),
    ("rule 4.99", "4.99"),
    ("rules 4.3 and 4.77", "4.77"),
    ("A-29", "A-29"),
    ("RFC9110 section 5", "RFC9110"),
    ("RFC 9110 Section 5", "RFC 9110 Section"),
    ("RFC 9110 §5", "RFC 9110 §"),
    ("CVE-26-1", "CVE-26-1"),
    ("GHSA-1234", "GHSA-1234"),
    ("Contract, section 3", "Contract,"),
    ("docs/gone.md", "docs/gone.md"),
]


def test_nothing_is_found_where_nothing_is_wrong(clone: Path) -> None:
    (clone / "gatekeeper/planted.py").write_text("".join(f"# {text}\n" for text in _GOOD), encoding="utf-8")
    assert faults(clone) == []


@pytest.mark.parametrize(("text", "what"), _WRONG)
def test_a_citation_that_cannot_be_looked_up_is_found(clone: Path, text: str, what: str) -> None:
    (clone / "gatekeeper/planted.py").write_text(f'"""Good: T10."""\n\nX = 1  # {text}\n', encoding="utf-8")
    (clone / "gatekeeper/quoting.py").write_text(f'X = "{text}"\n', encoding="utf-8")
    found = faults(clone)
    assert [each for each in found if not each.startswith("gatekeeper/planted.py:3: ")] == []
    assert any(each.endswith(f": {what}") or what in each for each in found)


@pytest.mark.parametrize("target", ["gone.md", "attacks.md#gone", "#gone", "img/gone.svg"])
def test_a_link_that_leads_nowhere_is_found(clone: Path, target: str) -> None:
    (clone / "docs/planted.md").write_text(f"# Here\n\n[a](#here), [b](attacks.md#tokens), [c]({target})\n")
    assert faults(clone) == [f"docs/planted.md: link to {target}"]
