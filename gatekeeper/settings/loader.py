"""Load the settings from an environment, and describe those in effect."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, Literal, NamedTuple

from pydantic import ValidationError

from gatekeeper.errors import ConfigError
from gatekeeper.settings.conflicts import Conflict, mixed_keys
from gatekeeper.settings.model import Settings
from gatekeeper.settings.source import EnvironmentSource, SettingInfo, setting_infos

# What names keys, and what must agree with them.
_KEY_FIELDS: Final = ("jwt_secret", "jwt_public_key", "jwks_url", "jwks_ca_file", "jwt_algorithms", "signing_key")


class EffectiveSetting(NamedTuple):
    """One setting as it is in effect. `value` is one line, with secrets masked."""

    variable: str
    value: str
    source: Literal["default", "environment", "env file", "file"]


def load(
    environ: Mapping[str, str] | None = None, *, require_upstream: bool = False, require_keys: bool = True
) -> Settings:
    """Load the settings from `environ`, by default the environment of this process.

    `require_upstream` makes a missing `GATEKEEPER_UPSTREAM_URL` a problem, as the sidecar needs it and the middleware
    does not. Without `require_keys` the settings of keys are not read, and there is one that verifies nothing: for
    commands that neither sign nor verify. Raises `ConfigError` with every problem, one line each.
    """
    environ = os.environ if environ is None else environ
    if not require_keys:
        names = {name for info in setting_infos(Settings) if info.field in _KEY_FIELDS for name in info.names}
        environ = {name: value for name, value in environ.items() if name not in names}
        environ["GATEKEEPER_JWT_SECRET"] = secrets.token_urlsafe(48)
    return _load(EnvironmentSource(Settings, environ), require_upstream)


def describe(
    environ: Mapping[str, str] | None = None, *, env_file_names: AbstractSet[str] = frozenset()
) -> list[EffectiveSetting]:
    """List every setting in effect with its source, in the order of docs/settings.md. Raises `ConfigError`.

    `env_file_names` are the variables of `environ` that an environment file has set.
    """
    source = EnvironmentSource(Settings, os.environ if environ is None else environ)
    settings = _load(source, require_upstream=False)
    return [_effective(info, source, settings, env_file_names) for info in setting_infos(Settings)]


def store_name(settings: Settings) -> str:
    """Return which store these settings name, with the user and the password masked."""
    if settings.redis_url is None:
        return f"embedded Valkey in {os.path.realpath(settings.data_dir)}"
    info = next(info for info in setting_infos(Settings) if info.field == "redis_url")
    return info.reader.show(settings.redis_url.get_secret_value())


def _load(source: EnvironmentSource, require_upstream: bool) -> Settings:
    values = source()
    settings, problems = _validate(source, values)
    given = {*values, *source.unreadable}
    if require_upstream and "upstream_url" not in given:
        info = next(info for info in setting_infos(Settings) if info.field == "upstream_url")
        problems.append(f"{info.variable}: not set; accepted: {info.reader.accepted}")
    # By the names alone: setting both is a problem even where neither can be read and no settings object exists.
    if mixed := mixed_keys(given):
        problems.append(mixed.problem)
    problems = list(dict.fromkeys([*source.problems, *problems]))
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _validate(source: EnvironmentSource, values: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """Return the settings, or `None` and every problem of these values."""
    files = tuple((origin.variable, origin.path) for origin in source.origins.values() if origin.path)
    try:
        return Settings(**values, secret_files=files), []
    except ValidationError as error:
        problems = [_problem(source, line) for line in error.errors() if line["loc"]]
        refused = {str(line["loc"][0]) for line in error.errors() if line["loc"]}
        conflicts = _conflicts(error)
    if refused:
        # pydantic looks for conflicts only where every field is valid: look again without the refused fields.
        try:
            Settings(**{name: value for name, value in values.items() if name not in refused})
        except ValidationError as error:
            conflicts = _conflicts(error)
    uncertain = refused | source.unreadable
    return None, [*problems, *(conflict.problem for conflict in conflicts if not conflict.fields & uncertain)]


def _problem(source: EnvironmentSource, line: Any) -> str:
    """Word the problem of one refused field from pydantic's error."""
    field = str(line["loc"][0])
    info = next(info for info in setting_infos(Settings) if info.field == field)
    origin = source.origins[field]
    why = line["ctx"]["error"] if line["type"] == "value_error" else "is not accepted"
    shown = info.reader.show_refused(origin.text)
    return f"{origin.variable}: read {shown}, which {why}; accepted: {info.accepted(origin.variable)}"


def _conflicts(error: ValidationError) -> list[Conflict]:
    return [conflict for line in error.errors() if line["type"] == "conflict" for conflict in line["ctx"]["conflicts"]]


def _effective(
    info: SettingInfo, source: EnvironmentSource, settings: Settings, env_file_names: AbstractSet[str]
) -> EffectiveSetting:
    origin = source.origins.get(info.field)
    if origin is not None:
        from_env_file = origin.source == "environment" and origin.variable in env_file_names
        return EffectiveSetting(
            info.variable, info.reader.show(origin.value), "env file" if from_env_file else origin.source
        )
    if info.field == "jwt_algorithms":
        return EffectiveSetting(info.variable, ",".join(settings.algorithms), "default")
    if info.field == "unknown_session":
        return EffectiveSetting(info.variable, "adopt" if settings.adopts_unknown else "reject", "default")
    default = info.default_text.replace("`", "") if info.default is None else info.default
    return EffectiveSetting(info.variable, default, "default")
