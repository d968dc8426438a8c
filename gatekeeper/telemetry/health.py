"""Health and metrics: what the ops port answers with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

Scrape = Callable[[], tuple[bytes, str]]


class Health:
    """Readiness. Not ready from the first moment of a drain on, whatever else is well."""

    def __init__(self, faults: Callable[[], Awaitable[list[str]]]) -> None:
        self._faults = faults
        self.draining = False

    async def faults(self) -> list[str]:
        """Why no traffic should come here; empty when it should."""
        if self.draining:
            return ["shutting down"]
        return await self._faults()


def of_registry(registry: CollectorRegistry) -> Scrape:
    """The metrics of this process."""
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)


def of_workers(folder: Path) -> Scrape:
    """The metrics of all workers, from the files that they keep in `folder`."""

    def scrape() -> tuple[bytes, str]:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    return scrape
