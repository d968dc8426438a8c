"""The log of the process, on stderr: JSON lines, or text for a terminal. Requests are logged by `access_log`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.stdlib.ExtraAdder(),
]


def configure(*, as_json: bool, level: str) -> None:
    """Send the records of every logger to one handler. `level` is a level name of `logging`, in any case."""
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=_wants_colors())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # The audit log is written at every log level.
    logging.getLogger("gatekeeper.audit").setLevel(logging.INFO)
    # At debug level these two log request lines and headers, which contain tokens.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _wants_colors() -> bool:
    """Tell whether stderr is a terminal that shows colors, and its user wants them (no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
