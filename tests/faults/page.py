"""The table of docs/reliability.md: every fault of the store, as the suite has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.bed import MODES, Outcome
from tests.faults.scenarios import Fault

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- python -m tests.faults: begin -->\n", "<!-- python -m tests.faults: end -->\n"

# Faults that have tests of their own: what happens, and what follows.
APART: Mapping[str, tuple[str, str]] = {
    "R6": ("a `maxmemory-policy` that evicts", "`gatekeeper check --online` warns"),
    "R11": (
        "the primary is killed, or replaced as planned (Sentinel)",
        "its successor is followed and told what it lacks; no acknowledged revocation of a running Gatekeeper is lost",
    ),
    "R12": (
        "a primary that was frozen and replaced comes back (Sentinel)",
        "Gatekeeper has left it before that, and never follows an older election again",
    ),
    "R13": ("a primary is cut off from its replicas", "no revocation is acknowledged that no replica has"),
    "R14": (
        "slots move, a primary dies, a part is away (Cluster)",
        "moves are no fault; 503 until a replica takes over; no acknowledged revocation is lost",
    ),
    "R16": ("a session that began before the copy and ended after it", "lives again: the log warns of it"),
    "R20": ("clients leave at any moment", "no client gets the response of another"),
    "R22": ("messages that announce revocations are lost", "open streams end three seconds later at most"),
    "R23": ("the store expires no keys by itself", "sessions end by the deadlines in their records"),
    "T1": (
        "the clock of the host or the store jumps by an hour, either way, or a failover leads to a host that is ahead",
        "no session ends; those that would are 503 until the clocks agree; tokens are judged by the host's clock",
    ),
    "T2": ("Gatekeeper frozen and thawed", "a user who was signed out meanwhile is refused at the first request"),
    "K2": ("Gatekeeper is restarted under load, by an inherited socket or by `/readyz`", "no request fails"),
    "K11": ("the store is not there at the start", "503, `/readyz` too; service as soon as it is there"),
    "K12": (
        "two releases on one store",
        "of one format, each enforces the revocations of the other; of two, the later one touches nothing and is 503",
    ),
}


def table(rows: list[tuple[Fault, Outcome]]) -> str:
    """Write the measured part in Markdown."""
    lines = [
        "| fault | the store is | `deny`: responses meanwhile | `allow_verified` | service again after | metrics say |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for fault, outcome in rows:
        deny, allow = (_statuses(outcome.during[mode]) for mode in MODES)
        seconds = max(outcome.service_seconds.values())
        kinds = ", ".join(f"`{kind}`" for kind in outcome.kinds) or "nothing"
        lines.append(f"| {fault.id} | {fault.title} | {deny} | {allow} | {seconds:.2f} s | {kinds} |")
    lines += ["", "| fault | what happens | what follows |", "| --- | --- | --- |"]
    lines += [f"| {name} | {title} | {follows} |" for name, (title, follows) in APART.items()]
    return "\n".join(lines) + "\n"


def _statuses(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{number} × {status}" for status, number in counts.items()) or "no request"


def written(page: str, made: str) -> str:
    """Put the table `made` between the marks of `page`."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{made}{_END}{after}"


def current() -> str:
    """Return the table that the page holds."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
