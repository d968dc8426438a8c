"""The command line. Exit codes: 0 for success, 1 for a failure, 2 for wrong usage or invalid settings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path

from gatekeeper import __version__
from gatekeeper.errors import ConfigError


def main() -> None:
    """Runs the command line. Prints invalid settings one per line, without a traceback."""
    # Commands print their results. Only `serve` and `demo` write a log, and they configure it themselves.
    logging.getLogger("gatekeeper").addHandler(logging.NullHandler())
    try:
        _run(sys.argv[1:])
    except ConfigError as error:
        print(f"gatekeeper: {len(error.problems)} problem(s) with the settings", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> None:
    # These two need no parser of options, which takes 0.1 s and 5 MiB of every process that serves.
    if arguments == ["--version"]:
        print(f"gatekeeper {__version__}")
    elif arguments == ["serve"]:
        sys.exit(serve(None, frozenset()))
    else:
        from gatekeeper.cli_commands import LongRunning, app

        app(obj=LongRunning(serve, demo))


def serve(env_file: Path | None, names: AbstractSet[str]) -> int:
    """Serves until SIGTERM or SIGINT. `names` are the variables that `env_file` has set."""
    from gatekeeper.serve import run
    from gatekeeper.serve.reload import Reread
    from gatekeeper.settings import load

    return run(load(require_upstream=True), Reread(env_file, names))


def demo() -> int:
    """Runs the demonstration until Ctrl-C."""
    from gatekeeper.demo.run import run

    return run()
