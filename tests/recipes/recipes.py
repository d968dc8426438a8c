"""All recipes, in the order of the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.recipes.real import DIRECTUS, NODE, PYTHON
from tests.recipes.recorded import RECORDED
from tests.recipes.walk import Recipe

ALL: Final[Sequence[Recipe]] = (*DIRECTUS, *PYTHON, *NODE, *RECORDED)
