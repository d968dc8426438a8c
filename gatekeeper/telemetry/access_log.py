"""The access log: one line a request, on stdout."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import IO, Final

import msgspec

from gatekeeper.telemetry.request_record import RequestRecord

_PATH_CHARACTERS: Final = 2048


class _Line(msgspec.Struct):
    """The access line (rule 8.2), fields in their order."""

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


class AccessLog:
    """One line a request: JSON, or text for a terminal."""

    def __init__(self, stream: IO[bytes] | None = None, *, text: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._text = text
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._over: list[RequestRecord] = []
        self._millisecond = 0
        self._second = 0
        self._second_text = self._now_text = ""

    def add(self, record: RequestRecord) -> None:
        """Of a request that is over; its line waits for `flush`."""
        self._over.append(record)

    def flush(self) -> None:
        """Writes what was added."""
        over, self._over = self._over, []
        if not over:
            return
        if self._text:
            lines = b"".join(map(_text_line, over))
        else:
            # One instant for all that is written together.
            self._stamp()
            lines = self._encode_lines([self._line(record) for record in over])
        try:
            self._stream.write(lines)
            self._stream.flush()
        except (OSError, ValueError):
            # A log that cannot be written is no reason to fail a request that was answered.
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
        )

    def _stamp(self) -> None:
        """UTC with milliseconds."""
        millisecond = int(time.time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._now_text = f"{self._second_text}.{rest:03d}Z"


def _text_line(record: RequestRecord) -> bytes:
    who = "-" if record.user_id is None else record.user_id
    why = record.decision if record.reason == "none" else f"{record.decision} {record.reason}"
    path = record.path[:_PATH_CHARACTERS]
    text = f"{record.status} {record.method:6} {path}  {why}  user={who}  {record.seconds * 1000:.1f} ms"
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace") + b"\n"
