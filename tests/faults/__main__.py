"""`python -m tests.faults`: tries every fault and writes the table of docs/reliability.md."""

from __future__ import annotations

from tests.faults.bed import bed
from tests.faults.page import PAGE, table, written
from tests.faults.scenarios import FAULTS

with bed(store_timeout="300ms") as made:
    rows = [(fault, fault.run(made)) for fault in FAULTS]
PAGE.write_text(written(PAGE.read_text(), table(rows)))
