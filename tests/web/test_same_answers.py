"""Mounted in an application, the gate keeps the same rules as the sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.contracts.gate import SETTINGS, GateContract
from tests.middleware.host import Mount, around, in_fastapi, in_starlette, mounted
from tests.system.sidecar import Store, World


@pytest.fixture(scope="class")
def world(store: Store, request: pytest.FixtureRequest) -> Iterator[World]:
    with mounted(store, request.cls.mount, **SETTINGS) as made:
        yield made


class TestAddedToStarlette(GateContract):
    mount: ClassVar[Mount] = staticmethod(in_starlette)


class TestAddedToFastapi(GateContract):
    mount: ClassVar[Mount] = staticmethod(in_fastapi)


class TestAroundAnApplication(GateContract):
    mount: ClassVar[Mount] = staticmethod(around)
