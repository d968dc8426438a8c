"""The recipes for backends that cannot run here, each walked through against a recording as its page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.recipes import pages
from tests.recipes.recorded import JTI_MATCHER, RECORDED, Keycloak
from tests.recipes.walk import LISTS, Recipe, Walk, assert_admitted, assert_as_the_page_says, assert_over, site
from tests.system.sidecar import Store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", RECORDED, ids=lambda recipe: recipe.name)
def test_the_page_does_what_the_table_says(recipe: Recipe, backend_of: Callable[[Recipe], str], store: Store) -> None:
    assert_as_the_page_says(recipe, backend_of(recipe), store)


def test_keycloak_remembers_the_browser_and_a_revoked_session_stays_revoked_until_a_password(
    backend_of: Callable[[Recipe], str], store: Store
) -> None:
    (recipe,) = [each for each in RECORDED if each.name == "Keycloak"]
    with site(recipe, backend_of(recipe), store) as keycloak, keycloak.signed_in() as browser:
        assert isinstance(browser, Keycloak)
        (row,) = browser.sessions()
        assert browser.at_gatekeeper("DELETE", f"{LISTS}/{row['id']}").status_code == 200
        # Each refresh is a new token of the same sign-in.
        assert_over(keycloak, browser)
        assert browser.sign_in_again().good
        assert [each["id"] for each in browser.sessions()] != [row["id"]]


def test_devise_with_one_jti_a_user_signs_in_again_after_any_end(
    backend_of: Callable[[Recipe], str], store: Store
) -> None:
    with site(JTI_MATCHER, backend_of(JTI_MATCHER), store) as devise, devise.signed_in() as phone:
        with devise.signed_in() as laptop:
            # As for devise, all devices of a user are one.
            (row,) = laptop.sessions()
            assert laptop.at_gatekeeper("DELETE", f"{LISTS}/{row['id']}").status_code == 200
            assert_over(devise, phone)
            assert_over(devise, laptop)
        devise.moment()
        with devise.signed_in() as again:
            assert_admitted(again)
            assert_over(devise, phone)
            assert again.logout().good
            assert_over(devise, again)
        with devise.signed_in() as again:
            assert_admitted(again)


@pytest.mark.parametrize(
    ("changed", "columns"),
    [
        ({"login_paths": "/x", "public_paths": "/api/auth/login"}, {"opens at login", "list", "limit"}),
        ({"jwt_user_claim": "user_id"}, set(pages.COLUMNS)),
        ({"refresh_paths": "/x"}, {"refresh", "logout"}),
        ({"logout_paths": "/x"}, {"logout"}),
        ({"device_limit": "4"}, {"limit"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_walk_finds_what_a_setting_is_for(
    changed: dict[str, str], columns: set[str], backend_of: Callable[[Recipe], str], store: Store
) -> None:
    (recipe,) = [each for each in RECORDED if each.name == "Laravel with jwt-auth"]
    with site(recipe, backend_of(recipe), store, **changed) as running:
        row = Walk(running).row()
    assert {column for column, cell in row.items() if cell == "no"} == columns
