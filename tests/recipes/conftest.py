"""One store for all recipes, and one process for all that share a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.recipes.walk import Recipe
from tests.system.sidecar import Store, external_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="module")
def backend_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Recipe], str]]:
    """Starts a recipe's backend where it does not run yet; its URL."""
    urls: dict[str, str] = {}
    with ExitStack() as running:

        def start(recipe: Recipe) -> str:
            key = str(getattr(recipe.serve, "args", recipe.name))
            if key not in urls:
                directory = tmp_path_factory.mktemp("backend")
                urls[key] = running.enter_context(recipe.serve(directory))
            return urls[key]

        yield start
