from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.dialects import DIALECTS
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, external_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="session")
def world(store: Store) -> Iterator[World]:
    """Every dialect, in front of an application."""
    with mounted(store) as made:
        yield made


@pytest.fixture(scope="class")
def without(store: Store, request: pytest.FixtureRequest) -> Iterator[World]:
    """Every dialect but the one that a class is about."""
    others = [name for name in DIALECTS if name != request.cls.name]
    with mounted(store, dialects=",".join(others)) as made:
        yield made


@pytest.fixture(scope="session")
def without_store(store: Store) -> Iterator[World]:
    """Every dialect, and no store that answers."""
    with mounted(store, redis_url=f"unix://{store.path}.away") as made:
        yield made
