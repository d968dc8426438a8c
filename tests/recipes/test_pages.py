"""The pages of docs/recipes: none without a test, none that the index forgets, no setting that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatekeeper.settings import load
from tests.recipes import pages
from tests.recipes.recipes import ALL


def test_every_block_of_settings_is_walked_through() -> None:
    assert {(recipe.page, recipe.block) for recipe in ALL} == pages.blocks()


def test_the_index_has_every_recipe_in_their_order() -> None:
    assert list(pages.rows(pages.INDEX.read_text(encoding="utf-8"))) == [recipe.name for recipe in ALL]


def test_the_index_links_every_page() -> None:
    linked = {recipe.page for recipe in ALL}
    assert linked == {path.name for path in pages.FOLDER.glob("*.md")} - {pages.INDEX.name}


@pytest.mark.parametrize(("page", "block"), sorted(pages.blocks()))
def test_the_settings_of_a_page_are_good(page: str, block: str, tmp_path: Path) -> None:
    settings = pages.settings_of(page, block)
    recipe = next(each for each in ALL if (each.page, each.block) == (page, block))
    if "jwt_secret_file" in settings:
        (tmp_path / "jwt-secret").write_text(recipe.secret)
        settings["jwt_secret_file"] = str(tmp_path / "jwt-secret")
    settings |= recipe.live_settings("http://127.0.0.1", tmp_path)
    load({f"GATEKEEPER_{name.upper()}": value for name, value in settings.items()}, require_upstream=True)


def test_a_row_is_found_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "README.md"
    row = dict.fromkeys(pages.COLUMNS, "yes")
    index.write_text(f"| a |\n| --- |\n{pages.line_of('a.md', 'A', row)}\n{pages.line_of('b.md', 'B', row)}\n")
    monkeypatch.setattr(pages, "INDEX", index)
    line = pages.line_of("a.md", "A", row | {"refresh": "no"})
    pages.rewrite([line])
    assert pages.rows(index.read_text()) == {"A": line, "B": pages.line_of("b.md", "B", row)}
