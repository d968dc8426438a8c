"""Read the texts of settings from environment variables, and of secrets from files.

The source finds the problems that validated fields cannot show: unknown names, a setting given twice, an unreadable
file. It collects them instead of raising, so that they are reported together with all others (rule 2.1).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from gatekeeper.settings.types import MASK, PREFIX, SettingReader, env_name, is_path, read_file

# Kubernetes adds these to every pod for a Service called gatekeeper, or gatekeeper-<something> (rule 2.6):
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(
    r"GATEKEEPER_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PORT|PROTO|ADDR))?)?)"
)


@dataclass(frozen=True)
class SettingInfo:
    """The description of one setting.

    `default` is written as an operator would write it; where it is `None`, `default_text` describes the effect.
    `example` is a value for config/gatekeeper.env. `alias_unit` is `m` where a plain number under the alias counts
    minutes instead of seconds.
    """

    field: str
    group: str
    meaning: str
    default: str | None
    default_text: str
    example: str
    alias: str | None
    alias_unit: Literal["", "m"]
    reader: SettingReader

    @property
    def variable(self) -> str:
        return env_name(self.field)

    @property
    def names(self) -> tuple[str, ...]:
        """All variables that set this setting: its own, its `_FILE`, its alias."""
        file = (f"{self.variable}_FILE",) if self.reader.secret else ()
        return (self.variable, *file, *((self.alias,) if self.alias else ()))

    def value(self, name: str, text: str) -> str:
        """Return the text to read where `name` was set to `text`: a plain number under an alias gets its unit."""
        plain_number = re.fullmatch(r"\s*[0-9]+(?:\.[0-9]+)?\s*", text)
        return text.strip() + self.alias_unit if name == self.alias and plain_number else text

    def accepted(self, name: str) -> str:
        """Describe the texts that are accepted under `name`."""
        unit = " (under this name a plain number is minutes)" if name == self.alias and self.alias_unit else ""
        return f"{self.reader.accepted}{unit}"


@dataclass(frozen=True)
class SettingOrigin:
    """The origin of a setting's text: the `variable` that was set, and the `path` of the file that it named, if any.

    `text` is the text as it was found, `value` with the unit that an alias implies.
    """

    variable: str
    source: Literal["environment", "file"]
    text: str
    value: str
    path: Path | None = None


def setting_infos(settings_cls: type[BaseModel]) -> list[SettingInfo]:
    """Describe all settings of a class, in the order of its fields. A field without a reader is not a setting."""
    found = []
    for name, field in settings_cls.model_fields.items():
        reader = next((item for item in field.metadata if isinstance(item, SettingReader)), None)
        if reader is not None and isinstance(field.json_schema_extra, dict):
            extra: dict[str, Any] = field.json_schema_extra
            default = field.default if isinstance(field.default, str) else None
            found.append(
                SettingInfo(field=name, meaning=field.description or "", default=default, reader=reader, **extra)
            )
    return found


class EnvironmentSource:
    """Reads the settings of `settings_cls` from `environ`, and secrets from the files it names.

    After a call, `problems` holds one line for each problem, `unreadable` the fields they concern, and `origins` the
    origin of each value.
    """

    def __init__(self, settings_cls: type[BaseModel], environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._settings = {info.field: info for info in setting_infos(settings_cls)}
        self.problems: list[str] = []
        self.unreadable: set[str] = set()
        self.origins: dict[str, SettingOrigin] = {}

    def __call__(self) -> dict[str, Any]:
        """Return the texts that were found, by field."""
        self.problems = self._unknown_names()
        for info in self._settings.values():
            given = [name for name in info.names if name in self._environ]
            if len(given) > 1:
                self._report(info, f"{' and '.join(given)}: both are set; accepted: one of them")
            elif given and (origin := self._origin(info, given[0])) is not None:
                self.origins[info.field] = origin
        return {field: origin.value for field, origin in self.origins.items()}

    def _origin(self, info: SettingInfo, name: str) -> SettingOrigin | None:
        text = self._environ[name]
        if name != f"{info.variable}_FILE":
            return SettingOrigin(name, "environment", text, info.value(name, text))
        try:
            content = read_file(Path(text)) if text.strip() else ""
        except ValueError as error:
            shown = repr(text) if is_path(text) else MASK
            self._report(info, f"{name}: read {shown}, which {error}; accepted: the path of a readable text file")
            return None
        content = re.sub(r"\r?\n\Z", "", content)
        return SettingOrigin(name, "file", content, content, Path(text))

    def _report(self, info: SettingInfo, problem: str) -> None:
        self.problems.append(problem)
        self.unreadable.add(info.field)

    def _unknown_names(self) -> list[str]:
        known = {name for info in self._settings.values() for name in info.names}
        return [
            _unknown(name, known)
            for name in sorted(self._environ)
            # A name that differs only in case is a typing error too; other names in lower case are not ours.
            if (name.startswith(PREFIX) or name.upper() in known)
            and name not in known
            and not _SERVICE_LINK.fullmatch(name)
        ]


def _unknown(name: str, known: set[str]) -> str:
    # The value is not shown: under a mistyped name it may be a secret.
    if name.endswith("_FILE") and name.removesuffix("_FILE") in known:
        return f"{name}: unknown setting; accepted: {name.removesuffix('_FILE')} (only secrets are read from files)"
    # Without the prefix, which makes all names look alike.
    stems = {candidate.removeprefix(PREFIX): candidate for candidate in sorted(known)}
    near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), stems, n=1)
    nearest = f"did you mean {stems[near[0]]}?" if near else "no known name is similar; docs/settings.md lists them all"
    return f"{_one_line(name)}: unknown setting; {nearest}"


def _one_line(name: str) -> str:
    return name if name.isprintable() else repr(name)
