from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gatekeeper.web.engine import Engine
from gatekeeper_middleware.services import SessionService, TokenService
from tests.middleware.python_api import ISSUES, running
from tests.system.sidecar import Store, external_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    """Issues tokens."""
    async with running(store, **ISSUES) as engine:
        yield engine


@pytest.fixture
async def observing(store: Store) -> AsyncIterator[Engine]:
    """Issues none."""
    async with running(store) as engine:
        yield engine


@pytest.fixture
def tokens(engine: Engine) -> TokenService:
    return TokenService(engine)


@pytest.fixture
def sessions(tokens: TokenService) -> SessionService:
    return tokens.session_service
