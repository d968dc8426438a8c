"""Walks through all recipes, or those whose names hold a given word, and rewrites their rows in docs/recipes/README.md:
`python -m tests.recipes [WORD]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.recipes import pages
from tests.recipes.recipes import ALL
from tests.recipes.walk import walk
from tests.system.sidecar import external_store


def main(word: str = "") -> None:
    lines = []
    with external_store() as store:
        for recipe in (each for each in ALL if word.lower() in each.name.lower()):
            with tempfile.TemporaryDirectory() as directory, recipe.serve(Path(directory)) as backend:
                line, faults = walk(recipe, backend, store)
            print(line, *(f"  {column}: {fault}" for column, fault in faults.items()), sep="\n")
            lines.append(line)
    pages.rewrite(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
