"""The Lua scripts that carry out the law of a session. Each begins with `audit` and `common`, where the law stands."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gatekeeper.store.command import Script, load_script

SCRIPTS: Final = Path(__file__).parent


def load(*names: str, durable: bool = False) -> Script:
    """Read `<name>.lua` of this folder, one after another, as one script."""
    return load_script(SCRIPTS, *names, durable=durable)
