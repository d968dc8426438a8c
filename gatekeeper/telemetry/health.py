"""Readiness and the metrics, as the ops port serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

Scrape = Callable[[], tuple[bytes, str]]


class Health:
    """The readiness of a process: not ready as soon as a drain begins, else as `faults` reports."""

    def __init__(self, faults: Callable[[], Awaitable[list[str]]]) -> None:
        self._faults = faults
        self.draining = False

    async def faults(self) -> list[str]:
        """Return the reasons not to send traffic to this process; empty when it is ready."""
        if self.draining:
            return ["shutting down"]
        return await self._faults()


def of_registry(registry: CollectorRegistry) -> Scrape:
    """Return a scrape of the metrics of this process."""
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)


def of_workers(folder: Path) -> Scrape:
    """Return a scrape of the metrics of all workers, which they keep in files in `folder`."""

    def scrape() -> tuple[bytes, str]:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    return scrape
