"""The record of one request: filled while the request is served, then counted and written to the access log once."""

from __future__ import annotations

from typing import Literal

import msgspec

Decision = Literal["allow", "deny", "bypass", "error"]


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request, as it will be counted and logged.

    `route` is a path template, or `upstream` for a forwarded request. `started_at` is a time of `time.perf_counter`.
    Seconds after that: `decided_seconds` until the verdict, `upstream_seconds` from sending the request to the backend
    until the head of its response, `seconds` until the request was finished. `why` names the rule that a bad token
    broke.
    """

    method: str
    path: str
    request_id: str
    client_ip: str
    started_at: float
    websocket: bool = False
    route: str = "upstream"
    decision: Decision = "error"
    reason: str = "none"
    user_id: str | None = None
    session_id: int | None = None
    status: int = 0
    bytes_out: int = 0
    decided_seconds: float | None = None
    upstream_seconds: float | None = None
    seconds: float = 0.0
    why: str = ""
