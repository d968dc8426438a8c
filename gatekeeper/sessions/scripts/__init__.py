"""The Lua scripts that change sessions. Each but `attempts`, `learn` and `trim_audit` begins with `audit` and `common`,
which states the law."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gatekeeper.store.command import Script, load_script

SCRIPTS: Final = Path(__file__).parent
# What a script with named arguments begins with.
MANAGE: Final = ("audit", "common", "upkeep", "arguments")


def load(*names: str, durable: bool = False) -> Script:
    """Reads `<name>.lua` of this folder for each name, in order, and joins them to one script."""
    return load_script(SCRIPTS, *names, durable=durable)
