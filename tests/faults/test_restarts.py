"""K2: restarts under load, in short. `python -m tests.faults.restarts` runs them at full length."""

from __future__ import annotations

import pytest

from tests.faults.restarts import trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("hosts", [1, 2])
async def test_no_request_fails_over_restarts(hosts: int, workers: int) -> None:  # K2
    found = await trial(hosts=hosts, workers=workers, restarts=3, requests=1_500)
    assert found.failures == []
    assert found.requests >= 1_500


async def test_no_request_fails_behind_an_nginx_that_keeps_connections() -> None:  # K2
    found = await trial(hosts=1, workers=1, restarts=3, requests=1_500, nginx=True)
    assert found.failures == []
    assert found.requests >= 1_500
