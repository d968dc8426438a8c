"""Settings from the environment: read, checked together, described, and warned info.

Variables begin with `GATEKEEPER_`; nothing else in the environment has any effect here. The fields are in
`settings/proxy.py`, `store.py` and `tokens.py`.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import ValidationError

from gatekeeper.errors import ConfigError
from gatekeeper.settings.conflicts import Conflict, mixed_keys
from gatekeeper.settings.grammars import IdentityHeader, ListenAddress, is_loopback, matches_everything
from gatekeeper.settings.model import DIALECT_NAMES, Settings
from gatekeeper.settings.secrets import IntrospectionClient, store_servers
from gatekeeper.settings.source import EnvironmentSource, SettingInfo, setting_infos
from gatekeeper.settings.tokens import ISSUE_FIELDS
from gatekeeper.settings.types import env_name

__all__ = [
    "DIALECT_NAMES",
    "EffectiveSetting",
    "IdentityHeader",
    "IntrospectionClient",
    "ListenAddress",
    "Settings",
    "describe",
    "load",
    "warnings",
]


class EffectiveSetting(NamedTuple):
    """One setting as it is in effect. `value` is one line, secrets masked."""

    variable: str
    value: str
    source: Literal["default", "environment", "env file", "file"]


def load(environ: Mapping[str, str] | None = None, *, require_upstream: bool = False) -> Settings:
    """The settings of `environ`, by default of this process. Raises `ConfigError` with every problem.

    `require_upstream` makes a missing `GATEKEEPER_UPSTREAM_URL` a problem: the sidecar needs it, the middleware does
    not.
    """
    return _load(EnvironmentSource(Settings, os.environ if environ is None else environ), require_upstream)


def describe(
    environ: Mapping[str, str] | None = None, *, env_file_names: AbstractSet[str] = frozenset()
) -> list[EffectiveSetting]:
    """Every setting in effect with its source, in the order of docs/settings.md. Raises `ConfigError` as `load`.

    `env_file_names` are the variables of `environ` that an environment file has set.
    """
    source = EnvironmentSource(Settings, os.environ if environ is None else environ)
    settings = _load(source, require_upstream=False)
    return [_description(info, source, settings, env_file_names) for info in setting_infos(Settings)]


def warnings(settings: Settings) -> list[str]:
    """What is accepted but should be known before it is relied on, one line each, beginning with the variable."""
    return [
        *_token_warnings(settings),
        *_issue_warnings(settings),
        *_limit_warnings(settings),
        *_file_limit_warnings(settings),
        *_store_warnings(settings),
        *_transport_warnings(settings),
        *_file_warnings(settings),
    ]


def _load(source: EnvironmentSource, require_upstream: bool) -> Settings:
    values = source()
    settings, problems = _validate(source, values)
    given = {*values, *source.unreadable}
    if require_upstream and "upstream_url" not in given:
        info = next(info for info in setting_infos(Settings) if info.field == "upstream_url")
        problems.append(f"{info.variable}: not set; accepted: {info.reader.accepted}")
    # By name: that both are set is a problem even where neither can be read, so no settings object could tell.
    if mixed := mixed_keys(given):
        problems.append(mixed.problem)
    problems = list(dict.fromkeys([*source.problems, *problems]))
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _validate(source: EnvironmentSource, values: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """The settings, or every problem of these values."""
    files = tuple((origin.variable, origin.path) for origin in source.origins.values() if origin.path)
    try:
        return Settings(**values, secret_files=files), []
    except ValidationError as error:
        problems = [_problem(source, line) for line in error.errors() if line["loc"]]
        refused = {str(line["loc"][0]) for line in error.errors() if line["loc"]}
        conflicts = _conflicts(error)
    if refused:
        # pydantic looks for conflicts only where every field is good: look again without the refused ones.
        try:
            Settings(**{name: value for name, value in values.items() if name not in refused})
        except ValidationError as error:
            conflicts = _conflicts(error)
    unsure = refused | source.unreadable
    return None, [*problems, *(conflict.problem for conflict in conflicts if not conflict.fields & unsure)]


def _problem(source: EnvironmentSource, line: Any) -> str:
    """The line for one refused field, from pydantic's error."""
    field = str(line["loc"][0])
    info = next(info for info in setting_infos(Settings) if info.field == field)
    origin = source.origins[field]
    why = line["ctx"]["error"] if line["type"] == "value_error" else "is not accepted"
    shown = info.reader.show_refused(origin.text)
    return f"{origin.variable}: read {shown}, which {why}; accepted: {info.accepted(origin.variable)}"


def _conflicts(error: ValidationError) -> list[Conflict]:
    return [conflict for line in error.errors() if line["type"] == "conflict" for conflict in line["ctx"]["conflicts"]]


def _description(
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


def _token_warnings(settings: Settings) -> Iterator[str]:
    for field, claim in (("jwt_issuer", "iss"), ("jwt_audience", "aud")):
        if getattr(settings, field) is None:
            yield f"{env_name(field)}: not set, so a token's `{claim}` is not looked at"
    for pattern in settings.public_paths:
        if matches_everything(pattern):
            yield f"{env_name('public_paths')}: {pattern!r} matches every path, so nothing it covers needs a session"


def _issue_warnings(settings: Settings) -> Iterator[str]:
    if settings.tokens == "issue":
        return
    for info in setting_infos(Settings):
        if info.field not in ISSUE_FIELDS:
            continue
        # A default that is written out changes nothing, so nothing is missed.
        if getattr(settings, info.field) != info.reader.read(Settings.model_fields[info.field].default):
            yield f"{info.variable}: has no effect while {env_name('tokens')} is observe"


def _limit_warnings(settings: Settings) -> Iterator[str]:
    limits = [env_name(field) for field in ("rate_limit", "login_rate_limit") if getattr(settings, field) is not None]
    if limits and not settings.trusted_proxies:
        yield (
            f"{env_name('trusted_proxies')}: none, so behind a proxy with a private or loopback address "
            f"{' and '.join(limits)} {'hold' if len(limits) > 1 else 'holds'} for users and not for client addresses"
        )


def _file_limit_warnings(settings: Settings) -> Iterator[str]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most <= settings.max_connections:
        yield (
            f"{env_name('max_connections')}: {settings.max_connections}, while a process may have {most} open files "
            "(ulimit -Hn), of which each connection is one"
        )


def _store_warnings(settings: Settings) -> Iterator[str]:
    if settings.on_store_failure == "allow_verified":
        yield (
            f"{env_name('on_store_failure')}: while the store does not answer, sessions that ended elsewhere pass for "
            f"up to {settings.degraded_max:g} s ({env_name('degraded_max')}), and failed logins are not counted"
        )


def _transport_warnings(settings: Settings) -> Iterator[str]:
    for field, carried in (
        ("jwks_url", "whoever is on the way can put in keys of their own"),
        ("upstream_url", "whoever is on the way can read tokens and write identity headers"),
        ("login_check_url", "whoever is on the way can read passwords"),
    ):
        if field in ISSUE_FIELDS and settings.tokens == "observe":
            continue
        parts = urlsplit(getattr(settings, field) or "")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            yield f"{env_name(field)}: plain http:// to {parts.hostname}, which is not this host: {carried}"
    if settings.redis_url is None:
        return
    for parts in store_servers(settings.redis_url.get_secret_value()):
        if parts.scheme == "unix" or is_loopback(parts.hostname):
            continue
        if parts.scheme == "redis":
            yield f"{env_name('redis_url')}: no TLS (rediss://) to {parts.hostname}, which is not this host"
        if not parts.password and "password=" not in parts.query:
            yield f"{env_name('redis_url')}: no password for {parts.hostname}, which is not this host"


def _file_warnings(settings: Settings) -> Iterator[str]:
    for name, path in settings.secret_files:
        try:
            mode = path.stat().st_mode
        except OSError:  # gone since it was read, so nobody can read it
            continue
        if mode & stat.S_IROTH:
            yield f"{name}: every user of this host can read {str(path)!r} (chmod o-r)"
