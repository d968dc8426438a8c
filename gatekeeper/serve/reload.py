"""SIGHUP: the settings are read again, from the files of secrets and the environment file too."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from gatekeeper.errors import ConfigError
from gatekeeper.settings import Settings, load
from gatekeeper.settings.env_file import load_env_file
from gatekeeper.settings.types import env_name

_log = logging.getLogger("gatekeeper")

IN_PLACE = frozenset({"jwt_secret", "jwt_public_key", "signing_key", "introspection_clients", "redis_url"})
"""The settings that a single process replaces while it runs; of `redis_url`, the user and the password."""


class Reread:
    """Reads the settings again as the command has read them: from the environment, and from `env_file`, of which
    `names` are the variables that it had set."""

    def __init__(self, env_file: Path | None = None, names: AbstractSet[str] = frozenset()) -> None:
        self._env_file = env_file.absolute() if env_file is not None else None
        self._names = names

    def __call__(
        self, before: Settings, *, kept: AbstractSet[str], check: Callable[[Settings], None]
    ) -> Settings | None:
        """Return the settings, with the fields `kept` as they were. Without valid ones, or where `check` raises
        `ConfigError`, say so in the log and return None: those of before stay in use."""
        try:
            environ = {name: value for name, value in os.environ.items() if name not in self._names}
            names = load_env_file(self._env_file, environ) if self._env_file is not None else frozenset[str]()
            settings = load(environ, require_upstream=True)
            check(settings)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("configuration not reloaded, the old one stays in use: %s", problem)
            return None
        for name in self._names - names:
            os.environ.pop(name, None)
        os.environ.update({name: environ[name] for name in names})
        self._names = names
        if (before.redis_url is None) != (settings.redis_url is None):
            kept |= {"redis_url"}
        if changed := sorted(name for name in kept if getattr(before, name) != getattr(settings, name)):
            _log.warning("configuration needs a restart: %s", ", ".join(map(env_name, changed)))
        return settings.model_copy(update={name: getattr(before, name) for name in kept})


def on_hangup(reload: Callable[[], None], end: Callable[[], None]) -> None:
    """Call `reload` at every SIGHUP, but `end` when the terminal of a process in its foreground has gone."""
    attended = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def handle() -> None:
        if attended and not _has_terminal():
            end()
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handle)


def _has_terminal() -> bool:
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False
