"""The recipes for Directus, each walked through as its page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.recipes.real import DIRECTUS
from tests.recipes.walk import Recipe, assert_as_the_page_says
from tests.system.sidecar import Store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", DIRECTUS, ids=lambda recipe: recipe.name)
def test_the_page_does_what_the_table_says(recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store) -> None:
    assert_as_the_page_says(recipe, backend_of(recipe), store)
