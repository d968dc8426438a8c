"""docs/reliability.md tells of every fault that is tried."""

from __future__ import annotations

from tests.faults.page import APART, current
from tests.faults.scenarios import FAULTS


def test_the_table_has_every_fault() -> None:
    rows = [line for line in current().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    told = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    tried = [(fault.id, fault.title) for fault in FAULTS]
    apart = [(name, title) for name, (title, _) in APART.items()]
    assert told == [("fault", "the store is"), *tried, ("fault", "what happens"), *apart]
