"""The table of docs/reliability.md: every fault of the store, as the suite has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.bed import MODES, Outcome
from tests.faults.scenarios import Fault

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- python -m tests.faults: begin -->\n", "<!-- python -m tests.faults: end -->\n"

# Shown by tests of their own.
APART: Mapping[str, tuple[str, str]] = {
    "R6": ("a `maxmemory-policy` that evicts", "`gatekeeper check --online` warns"),
    "R11": (
        "the master is killed, or replaced as planned (Sentinel)",
        "its successor is followed; with `GATEKEEPER_STORE_REPLICAS=1` no acknowledged end is lost",
    ),
    "R12": ("a master that was frozen and replaced comes back (Sentinel)", "it is left before that"),
    "R13": ("a master that is cut off from its replicas", "no end is acknowledged that no replica has"),
    "R14": (
        "slots move, a primary dies, a part is away (Cluster)",
        "moves are no fault; 503 until a replica takes over; no acknowledged end is lost",
    ),
    "R16": ("a session that began before the copy and ended after it", "lives again: the log warns of it"),
    "R20": ("clients that leave at any moment", "nobody gets anybody else's answer"),
    "R22": ("what is published of ends is lost", "open streams end three seconds later at most"),
    "R23": ("the store expires no keys by itself", "sessions end by the deadlines in their records"),
    "T1": ("the host's clock jumps by an hour, either way", "no session ends; tokens are judged by that clock"),
    "T2": ("Gatekeeper frozen and thawed", "who was signed out meanwhile is refused at the first request"),
    "K11": ("the store is not there at the start", "503, `/readyz` too; service as soon as it is there"),
    "K12": (
        "two builds on one store",
        "of one format, each enforces what the other ends; of two, the later one touches nothing and is 503",
    ),
}


def table(rows: list[tuple[Fault, Outcome]]) -> str:
    """The measured part, in Markdown."""
    lines = [
        "| fault | the store is | `deny`: answers meanwhile | `allow_verified` | service again after | metrics say |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for fault, outcome in rows:
        deny, allow = (_answers(outcome.during[mode]) for mode in MODES)
        seconds = max(outcome.service_seconds.values())
        kinds = ", ".join(f"`{kind}`" for kind in outcome.kinds) or "nothing"
        lines.append(f"| {fault.id} | {fault.title} | {deny} | {allow} | {seconds:.2f} s | {kinds} |")
    lines += ["", "| fault | what happens | what follows |", "| --- | --- | --- |"]
    lines += [f"| {name} | {title} | {follows} |" for name, (title, follows) in APART.items()]
    return "\n".join(lines) + "\n"


def _answers(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{number} × {status}" for status, number in counts.items()) or "none fell in"


def written(page: str, made: str) -> str:
    """`page` with the table `made` between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{made}{_END}{after}"


def current() -> str:
    """The table that the page holds."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
