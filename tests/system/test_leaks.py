"""No byte of a request or a response reaches another party, whatever breaks off (`python -m tests.system.leaks 100000`
does it longer)."""

from __future__ import annotations

import pytest

from tests.system.leaks import run


@pytest.mark.parametrize("http2", [False, True])
async def test_no_response_reaches_another_client_whatever_breaks_off(*, http2: bool) -> None:  # P0-S9, F21, B3
    seen = await run(2000, http2=http2)
    assert seen["200"] > 500
    assert seen["direct"] > 1000
    assert min(seen[each] for each in ("413", "502", "cut")) > 0
