"""The memory that a session takes in the store, on Valkey and on Redis: docs/operations.md."""

from __future__ import annotations

import pytest

from bench.memory import measure_bytes, together

GOAL = 450
WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT}"
# Of 111 to 125 bytes.
AGENTS = {
    "Edge on Windows": f"{WINDOWS} Chrome/139.0.0.0 Safari/537.36 Edg/139.0.0.0",
    "Opera on Windows": f"{WINDOWS} Chrome/139.0.0.0 Safari/537.36 OPR/121.0.0.0",
    "Chrome on macOS": f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Chrome/126.0.0.0 Safari/537.36",
    "Safari on macOS": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.6 Safari/605.1.15",
    "Chrome on Android": f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/139.0.0.0 Mobile Safari/537.36",
}


@pytest.mark.slow
async def test_a_session_takes_less_than_450_bytes(store_url: str) -> None:
    # An agent of 120 bytes, as the documentation has it; index and references included.
    rows = await measure_bytes(store_url, 3_000, 3)
    assert {"sessions", "due"} <= rows.keys()
    assert 200 < together(rows) < GOAL, rows


@pytest.mark.parametrize("user_agent", AGENTS.values(), ids=AGENTS.keys())
async def test_whatever_the_common_browser_is(store_url: str, user_agent: str) -> None:
    assert 111 <= len(user_agent) <= 125
    assert 200 < together(await measure_bytes(store_url, 600, 3, user_agent)) < GOAL
