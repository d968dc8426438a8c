"""The recipes for backends from npm, each walked through as its page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.recipes.real import NODE
from tests.recipes.walk import Recipe, assert_as_the_page_says, assert_found_without_settings
from tests.system.sidecar import Store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", NODE, ids=lambda recipe: recipe.block)
def test_the_page_does_what_the_table_says(recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store) -> None:
    assert_as_the_page_says(recipe, backend_of(recipe), store)


@pytest.mark.parametrize(
    "recipe",
    [each for each in NODE if each.name in {"Fastify", "Express with a header"}],
    ids=lambda recipe: recipe.name,
)
def test_the_tokens_are_found_without_settings_too(
    recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store
) -> None:
    assert_found_without_settings(recipe, backend_of(recipe), store)
