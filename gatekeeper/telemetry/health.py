"""Readiness and the metrics, as the ops port serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Scrape = Callable[[], tuple[bytes, str]]


def _alive() -> None:
    """Report no death: a process that responds is alive."""


class Health:
    """The readiness of a process: not ready as soon as a drain begins, else as `faults` reports. `death` returns why it
    should be restarted, None while it need not."""

    def __init__(self, faults: Callable[[], Awaitable[list[str]]], death: Callable[[], str | None] = _alive) -> None:
        self._faults = faults
        self.death = death
        self.draining = False

    async def faults(self) -> list[str]:
        """Return the reasons not to send traffic to this process; empty when it is ready."""
        if self.draining:
            return ["shutting down"]
        return await self._faults()


def of_registry(registry: CollectorRegistry) -> Scrape:
    """Return a scrape of the metrics of this process."""
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)
