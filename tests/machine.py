"""What this machine has."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(binary: str) -> str:
    """The path of a program. Without it the test is skipped as by `lacks`."""
    found = shutil.which(binary)
    if found is None:
        lacks(f"{binary} is not installed")
    return found


def lacks(what: str) -> NoReturn:
    """Skips the test, but fails it in CI, where everything must be tested."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
