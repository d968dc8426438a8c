"""The recipes for backends from PyPI, each walked through as its page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.recipes.real import PYTHON
from tests.recipes.walk import Recipe, assert_admitted, assert_as_the_page_says, assert_found_without_settings, site
from tests.system.sidecar import Store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", PYTHON, ids=lambda recipe: recipe.block)
def test_the_page_does_what_the_table_says(recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store) -> None:
    assert_as_the_page_says(recipe, backend_of(recipe), store)


def test_what_flask_refuses_for_its_csrf_value_it_still_refuses(
    backend_of: Callable[[Recipe], str], store: Store
) -> None:
    (recipe,) = [each for each in PYTHON if each.name == "Flask-JWT-Extended"]
    with site(recipe, backend_of(recipe), store) as flask, flask.signed_in() as browser:
        for headers in ({}, {"X-CSRF-TOKEN": "x"}):
            answer = browser.http.post("/protected", headers=headers)
            assert (answer.status_code, "CSRF" in answer.text) == (401, True)
        # Nor does Gatekeeper act on its own for a page of another site, which has no CSRF value to show.
        answer = browser.http.delete("/sessions/all", headers={"Origin": "https://evil.example"})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
        assert_admitted(browser)


@pytest.mark.parametrize(
    "recipe", [each for each in PYTHON if each.name == "Flask-JWT-Extended"], ids=lambda recipe: recipe.name
)
def test_the_tokens_are_found_without_settings_too(
    recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store
) -> None:
    assert_found_without_settings(recipe, backend_of(recipe), store)
