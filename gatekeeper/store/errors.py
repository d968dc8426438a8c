"""The names of the store's faults: what a call failed of, as the label of a metric."""

from __future__ import annotations

import re
from typing import Final

# By the code that an error reply begins with.
_BY_CODE: Final = {
    "LOADING": "loading",
    "READONLY": "read_only",
    "OOM": "out_of_memory",
    "MISCONF": "not_persisting",
    "NOREPLICAS": "no_replicas",
    "MASTERDOWN": "no_primary",
    "BUSY": "busy",
    "NOAUTH": "unauthenticated",
    "WRONGPASS": "unauthenticated",
    "NOPERM": "denied",
    "CLUSTERDOWN": "cluster_down",
    # Said by epoch.lua.
    "SCHEMA": "schema",
}
# Redis before 7 wraps what a command in a script was refused with.
_WRAPPED: Final = re.compile(r"^ERR Error (?:running|compiling) script .*?: -?([A-Z]+) ", re.DOTALL)


def code_of_reply(text: str) -> str:
    """The word that says what kind of error an error reply is."""
    wrapped = _WRAPPED.match(text)
    return wrapped[1] if wrapped else text.split(" ", 1)[0]


def kind_of_reply(text: str) -> str:
    """The fault that an error reply tells of; `refused` for one that concerns this call alone."""
    if "max number of clients" in text:
        return "too_many_clients"
    if text.startswith("ERR Protocol error: unauthenticated "):
        # Of who has not logged in, long commands are not even read.
        return "unauthenticated"
    return _BY_CODE.get(code_of_reply(text), "refused")
