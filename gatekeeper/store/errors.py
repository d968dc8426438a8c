"""Errors of the store, mapped to `StoreUnavailable` and its kinds (`gatekeeper.errors.STORE_FAULTS`)."""

from __future__ import annotations

import re
import socket
from typing import Final

from hiredis import ReplyError

from gatekeeper.errors import StoreUnavailable

# By the code that an error reply begins with.
_KIND_BY_CODE: Final = {
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
    # Raised by scripts/epoch.lua.
    "SCHEMA": "schema",
}
# Redis before version 7 wraps the error of a command that a script runs.
_WRAPPED: Final = re.compile(r"^ERR Error (?:running|compiling) script .*?: -?([A-Z]+) ", re.DOTALL)
_LONGEST_CODE: Final = 40


def code_of_reply(text: str) -> str:
    """Return the code of an error reply, such as `READONLY`."""
    wrapped = _WRAPPED.match(text)
    return wrapped[1] if wrapped else text.split(" ", 1)[0]


def kind_of_reply(text: str) -> str:
    """Return the kind of an error reply; `refused` for one that concerns this call alone."""
    if "max number of clients" in text:
        return "too_many_clients"
    if text.startswith("ERR Protocol error: unauthenticated "):
        # Before AUTH, Redis rejects long commands without reading them.
        return "unauthenticated"
    return _KIND_BY_CODE.get(code_of_reply(text), "refused")


def code_of(error: ReplyError) -> str:
    """Return the code of an error reply, cut to forty characters."""
    return code_of_reply(str(error))[:_LONGEST_CODE]


def unavailable_from(error: BaseException) -> StoreUnavailable:
    """Return a new `StoreUnavailable` for any error of a call. Its text holds no key, argument or password."""
    if isinstance(error, StoreUnavailable):
        return StoreUnavailable(str(error), kind=error.kind)
    kind, detail = "protocol", type(error).__name__
    if isinstance(error, ReplyError):
        kind, detail = kind_of_reply(str(error)), code_of(error)
        if kind == "schema":
            # The text comes from our own script, and names both formats.
            detail = str(error).partition(" ")[2]
    elif isinstance(error, TimeoutError):
        kind = "timeout"
    elif isinstance(error, OSError):
        kind = "connection"
        if type(error) in (OSError, socket.gaierror) and error.strerror:
            # These names say nothing: no file is left, no port is free, the name is unknown.
            detail = f"{detail}: {error.strerror}"
    return StoreUnavailable(f"session store failed: {kind} ({detail})", kind=kind)


def unexpected_reply() -> StoreUnavailable:
    """Return the error for a reply of another type or form than the command gives."""
    return StoreUnavailable("unexpected reply from the session store", kind="protocol")
