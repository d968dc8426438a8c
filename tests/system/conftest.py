"""What the tests of the whole system share: one store, one backend, one sidecar with the defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.gate import SETTINGS
from tests.system.sidecar import Backend, Sidecar, Store, World, external_store, sidecar


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


@pytest.fixture(scope="session")
def gate(store: Store, backend: Backend) -> Iterator[Sidecar]:
    """A sidecar with the defaults but for some public paths."""
    with sidecar(backend.url, redis_url=store.url, **SETTINGS) as running:
        yield running


@pytest.fixture
def world(gate: Sidecar, backend: Backend, store: Store) -> World:
    return World(gate.url, lambda: backend.reached, store)
