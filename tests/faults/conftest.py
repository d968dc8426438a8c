"""One bed for all trials: a store, two sidecars on it, and a fault proxy between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bed import Bed, bed


@pytest.fixture(scope="session")
def the_bed() -> Iterator[Bed]:
    with bed() as made:
        yield made
