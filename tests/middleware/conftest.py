from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.sidecar import Store, external_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running
