"""The access log: one line per request, on stdout."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import IO, Final

import msgspec

from gatekeeper.telemetry.request_record import RequestRecord

_PATH_CHARACTERS: Final = 2048


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the access log, with the fields in the order of rule 8.2; `why` only where it says something."""

    ts: str
    level: str
    event: str
    request_id: str
    client_ip: str
    method: str
    route: str
    path: str
    status: int
    duration_ms: float
    upstream_ms: float | None
    decision: str
    reason: str
    user_id: str | None
    session_id: int | None
    bytes_out: int
    why: str = ""


class AccessLog:
    """Writes one line per request: JSON, or text for a terminal."""

    def __init__(self, stream: IO[bytes] | None = None, *, text: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._text = text
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._pending: list[RequestRecord] = []
        self._millisecond = 0
        self._second = 0
        self._second_text = self._now_text = ""

    def add(self, record: RequestRecord) -> None:
        """Add a finished request. Its line is written by the next `flush`."""
        self._pending.append(record)

    def flush(self) -> None:
        """Write the lines of all requests added since the last call."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        if self._text:
            lines = b"".join(map(_text_line, pending))
        else:
            # Lines that are written together have the same timestamp.
            self._stamp()
            lines = self._encode_lines([self._line(record) for record in pending])
        try:
            self._stream.write(lines)
            self._stream.flush()
        except (OSError, ValueError):
            # A failure to log must not fail requests that have been served.
            return

    def _line(self, record: RequestRecord) -> _Line:
        upstream = record.upstream_seconds
        return _Line(
            self._now_text,
            "error" if record.status >= 500 else "info",
            "request",
            record.request_id,
            record.client_ip,
            record.method[:32],
            record.route,
            record.path[:_PATH_CHARACTERS],
            record.status,
            int(record.seconds * 1e6) / 1000,
            None if upstream is None else int(upstream * 1e6) / 1000,
            record.decision,
            record.reason,
            record.user_id,
            record.session_id,
            record.bytes_out,
            record.why,
        )

    def _stamp(self) -> None:
        """Set the current time: UTC, ISO 8601, with milliseconds."""
        millisecond = int(time.time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._now_text = f"{self._second_text}.{rest:03d}Z"


def _text_line(record: RequestRecord) -> bytes:
    user = "-" if record.user_id is None else record.user_id
    outcome = record.decision if record.reason == "none" else f"{record.decision} {record.reason}"
    if record.why:
        outcome += f" ({record.why})"
    path = record.path[:_PATH_CHARACTERS]
    text = f"{record.status} {record.method:6} {path}  {outcome}  user={user}  {record.seconds * 1000:.1f} ms"
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace") + b"\n"
