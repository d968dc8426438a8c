"""How long tests wait: until what they wait for has happened. A bound only stops a hang, and is far above what the
slowest machine needs, for a slow machine is no failure. It is below every default after which Gatekeeper gives up by
itself (a minute), so that what must happen at once is not taken for what happens in the end."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, Final

HANG_SECONDS: Final = 45.0
"""For what is done by processes that run."""
START_SECONDS: Final = 120.0
"""For a process or many: its start, its end, its whole run."""
_PAUSE_SECONDS: Final = 0.01


def eventually(condition: Callable[[], Any], what: str = "", *, seconds: float = HANG_SECONDS) -> Any:
    """Return what `condition` returns as soon as it is true; it is asked again until then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what or f"not within {seconds:g} s"
        time.sleep(_PAUSE_SECONDS)
    return found


def unless_slow(trial: Callable[[], Any], *, moment: float) -> None:
    """For what holds for a moment only (in seconds): `trial` again where it failed and took longer, for then the moment
    may have been over."""
    for _ in range(20):
        began = time.monotonic()
        try:
            trial()
        except AssertionError:
            if time.monotonic() - began < moment:
                raise
        else:
            return
    raise AssertionError("this machine is too slow to tell")


async def until(condition: Callable[[], Any]) -> Any:
    """`eventually` beside a running loop; `condition` must not block, and may be asynchronous."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(_PAUSE_SECONDS)
