"""The measurements: by work and peer, round by round, kept in `bench/.work/results.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import Figures


@dataclass
class Measured:
    """One peer at one work: the figures of each round, or why there are none."""

    rounds: list[Figures] = field(default_factory=list)
    lacks: str = ""

    def median(self, figure: str) -> float | None:
        found = [figures[figure] for figures in self.rounds if figure in figures]
        return median(found) if found else None


@dataclass
class WorkResult:
    """One work: when and how it was run, and every peer's part. `rate` is what a latency was measured at."""

    date: str
    seconds: float
    rate: float = 0.0
    peers: dict[str, Measured] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that the page on performance is made of."""

    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    works: dict[str, WorkResult] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    soak: dict[str, Any] = field(default_factory=dict)

    def median(self, work: str, peer: str, figure: str) -> float | None:
        """None where it was not measured."""
        measured = self.works[work].peers.get(peer) if work in self.works else None
        return measured.median(figure) if measured else None

    def ratio(self, work: str, peer: str, other: str, figure: str = "rate") -> float | None:
        ours, theirs = self.median(work, peer, figure), self.median(work, other, figure)
        return ours / theirs if ours is not None and theirs else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))


def load(path: Path) -> Results:
    """Returns what was saved there; nothing if there is no such file."""
    if not path.is_file():
        return Results()
    found = json.loads(path.read_text())
    works = {
        name: WorkResult(**{**work, "peers": {peer: Measured(**measured) for peer, measured in work["peers"].items()}})
        for name, work in found["works"].items()
    }
    return Results(**{**found, "works": works})
