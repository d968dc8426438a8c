"""Reads the pages of docs/recipes: the settings of each backend, and the table of what has been seen to work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from gatekeeper.settings.env_file import read_env_file
from tests.docs.blocks import blocks_of

FOLDER: Final = Path(__file__).parent.parent.parent / "docs" / "recipes"
INDEX: Final = FOLDER / "README.md"
COLUMNS: Final = ("opens at login", "list", "revoke", "refresh", "logout", "limit")
_PREFIX: Final = "GATEKEEPER_"

Row = dict[str, str]
"""The cells of a backend by column."""


def settings_of(page: str, block: str) -> dict[str, str]:
    """The settings in the block `block` of a page, by their names without prefix, in lower case."""
    (found,) = [each for each in blocks_of(page, (FOLDER / page).read_text(encoding="utf-8")) if each.file == block]
    with NamedTemporaryFile("w", suffix=".env") as file:
        file.write(found.text)
        file.flush()
        settings = read_env_file(Path(file.name))
    assert all(name.startswith(_PREFIX) for name in settings), f"{page}: {sorted(settings)}"
    return {name.removeprefix(_PREFIX).lower(): value for name, value in settings.items()}


def blocks() -> set[tuple[str, str]]:
    """Every page with settings and the block that holds them."""
    return {
        (path.name, block.file)
        for path in FOLDER.glob("*.md")
        for block in blocks_of(path.name, path.read_text(encoding="utf-8"))
        if block.language == "ini" and block.file
    }


def line_of(page: str, name: str, row: Mapping[str, str]) -> str:
    return f"| [{name}]({page}) | {' | '.join(row[column] for column in COLUMNS)} |"


def rows(text: str) -> dict[str, str]:
    """The lines of the tables of a page by the name of the backend."""
    return {match[1]: match[0] for match in re.finditer(r"^\| \[([^\]]+)\]\(.*\|$", text, re.MULTILINE)}


def rewrite(lines: Iterable[str]) -> None:
    """Replaces the rows of the index by `lines`."""
    text = INDEX.read_text(encoding="utf-8")
    for name, line in rows("\n".join(lines)).items():
        text = text.replace(rows(text)[name], line)
    INDEX.write_text(text, encoding="utf-8")
