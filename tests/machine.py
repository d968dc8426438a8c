"""What this machine has."""

from __future__ import annotations

import os
import shutil

import pytest


def need(binary: str) -> str:
    """The path of a program. Without it a test is skipped, but fails in CI, where everything must be tested."""
    found = shutil.which(binary)
    if found is None:
        message = f"{binary} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
