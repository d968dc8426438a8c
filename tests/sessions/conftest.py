"""Runs every test of this folder on Valkey and on Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.store.embedded import server_binary
from tests.conftest import store_process
from tests.machine import need
from tests.sessions.by_hand import Hand


@pytest.fixture(scope="session", params=["valkey", pytest.param("redis", marks=pytest.mark.slow)])
def store_server(request: pytest.FixtureRequest) -> Iterator[str]:
    binary = server_binary() if request.param == "valkey" else need("redis-server")
    with store_process(binary) as (url, _):
        yield url


@pytest.fixture
def hand(store_url: str) -> Iterator[Hand]:
    with Hand(store_url) as hand:
        yield hand
