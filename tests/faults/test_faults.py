"""Every fault of the store, under traffic: what must hold, holds (`bed.Trial`).

R1, R2, R3, R4, R5, R7, R8, R9, R10, R15, R16, R17, R18, R19, R21 of the catalogue of faults.
"""

from __future__ import annotations

import pytest

from tests.faults.bed import Bed
from tests.faults.scenarios import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.id}-{fault.run.__name__}")
def test_a_fault_of_the_store(the_bed: Bed, fault: Fault) -> None:
    fault.run(the_bed)
