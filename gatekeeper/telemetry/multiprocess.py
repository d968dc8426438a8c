"""The metrics of several processes, which each keeps in files of one folder."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gatekeeper.telemetry.health import Scrape
from gatekeeper.telemetry.line_writer import dropped_lines


class _WorkersAndParent(Collector):
    """The metrics of all workers, and the dropped log lines of their parent, which keeps no files."""

    def __init__(self, folder: Path) -> None:
        # It registers itself; here it is only asked.
        self._workers = MultiProcessCollector(CollectorRegistry(), path=str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        for metric in self._workers.collect():  # type: ignore[no-untyped-call]
            if metric.name == "gatekeeper_log_lines_dropped":
                metric.samples = [sample._replace(value=sample.value + dropped_lines()) for sample in metric.samples]
            yield metric


def of_workers(folder: Path) -> Scrape:
    """Return a scrape of the metrics of all workers, which they keep in files in `folder`."""

    def scrape() -> tuple[bytes, str]:
        registry = CollectorRegistry()
        registry.register(_WorkersAndParent(folder))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    return scrape


def retire(folder: Path, pid: int) -> None:
    """Take a process that has ended out of the gauges, and add what it counted to one file for all that have ended:
    counters never fall, and the folder does not grow with every restart."""
    for file in folder.glob(f"*_{pid}.db"):
        kind = file.name.partition("_")[0]
        if kind != "gauge":
            # A process that was killed may have left a file that it had just begun.
            with suppress(struct.error, ValueError, RuntimeError):
                _add(file, folder / f"{kind}_ended.db")
        file.unlink()


def _add(file: Path, to: Path) -> None:
    total = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    try:
        for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            before, _ = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, before + value, timestamp)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]
