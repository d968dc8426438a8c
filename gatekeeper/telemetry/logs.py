"""The log of the process, on stderr: JSON lines, or text for a terminal. Requests are logged by `access_log`."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

# What every record has; anything else was given as `extra`.
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `event`, `level`, `ts`, what was given as `extra`, and `exception`, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "ts": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            **{name: value for name, value in record.__dict__.items() if name not in _USUAL},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def configure(*, as_json: bool, level: str) -> None:
    """Send the records of every logger to one handler. `level` is a level name of `logging`, in any case."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else _text_formatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # The audit log is written at every log level.
    logging.getLogger("gatekeeper.audit").setLevel(logging.INFO)
    # At debug level these two log request lines and headers, which contain tokens.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _text_formatter() -> logging.Formatter:
    # For terminals. It loads rich, where that is installed.
    import structlog

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.stdlib.ExtraAdder(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter
    return formatter(
        foreign_pre_chain=shared,
        processors=[
            formatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=_wants_colors()),
        ],
    )


def _wants_colors() -> bool:
    """Tell whether stderr is a terminal that shows colors, and its user wants them (no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
