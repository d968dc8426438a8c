"""Warnings of `gatekeeper check`: settings that are accepted, with a consequence that operators should know."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

from gatekeeper.settings.grammars import is_loopback, matches_everything
from gatekeeper.settings.model import Settings
from gatekeeper.settings.secrets import store_servers
from gatekeeper.settings.source import setting_infos
from gatekeeper.settings.tokens import ISSUE_FIELDS, USUAL_SECRET_FLOOR
from gatekeeper.settings.types import env_name


def warnings(settings: Settings) -> list[str]:
    """List the warnings, one line each, beginning with the variable."""
    return [
        *_token_warnings(settings),
        *_issue_warnings(settings),
        *_limit_warnings(settings),
        *_address_warnings(settings),
        *_file_limit_warnings(settings),
        *_store_warnings(settings),
        *_data_dir_warnings(settings),
        *_transport_warnings(settings),
        *_file_warnings(settings),
    ]


def _token_warnings(settings: Settings) -> Iterator[str]:
    for field, claim in (("jwt_issuer", "iss"), ("jwt_audience", "aud")):
        if getattr(settings, field) is None:
            yield f"{env_name(field)}: not set, so the `{claim}` of a token is not checked"
    if settings.key_kind == "hmac" and settings.jwt_secret_floor < USUAL_SECRET_FLOOR:
        yield f"{env_name('jwt_secret_floor')}: {short_secrets_risk(settings.jwt_secret_floor)}"
    if settings.tokens == "issue" and settings.jwt_required_claims:
        named = ", ".join(name for name, _ in settings.jwt_required_claims)
        yield (
            f"{env_name('jwt_required_claims')}: while {env_name('tokens')} is issue, tokens of Gatekeeper's own have "
            f"{named} only if {env_name('login_claims')} names it"
        )
    for pattern in settings.public_paths:
        if matches_everything(pattern):
            yield f"{env_name('public_paths')}: {pattern!r} matches every path, so no request needs a session"
    for pattern in settings.opaque_bearer_paths:
        if matches_everything(pattern):
            yield (
                f"{env_name('opaque_bearer_paths')}: {pattern!r} matches every path, so no request with an opaque "
                "Bearer needs a session"
            )


def short_secrets_risk(floor: int) -> str:
    """Return what an operator should know of a floor under that of RFC 7518 section 3.2."""
    return f"secrets of {floor} bytes are accepted; one of under {USUAL_SECRET_FLOOR} may be found from a single token"


def _issue_warnings(settings: Settings) -> Iterator[str]:
    if settings.tokens == "issue":
        return
    for info in setting_infos(Settings):
        if info.field not in ISSUE_FIELDS:
            continue
        # No warning for a default that is written out: ignoring it changes nothing.
        if getattr(settings, info.field) != info.reader.read(Settings.model_fields[info.field].default):
            yield f"{info.variable}: has no effect while {env_name('tokens')} is observe"


def _limit_warnings(settings: Settings) -> Iterator[str]:
    limits = [env_name(field) for field in ("rate_limit", "login_rate_limit") if getattr(settings, field) is not None]
    if limits and not settings.trusted_proxies:
        yield (
            f"{env_name('trusted_proxies')}: none, so behind a proxy with a private or loopback address "
            f"{' and '.join(limits)} {'limit' if len(limits) > 1 else 'limits'} users only, not client addresses"
        )


def _address_warnings(settings: Settings) -> Iterator[str]:
    default = Settings.model_fields["client_address_header"].default
    info = next(info for info in setting_infos(Settings) if info.field == "client_address_header")
    if settings.client_address_header != info.reader.read(default) and not settings.trusted_proxies:
        yield f"{info.variable}: has no effect while {env_name('trusted_proxies')} is none"


def _file_limit_warnings(settings: Settings) -> Iterator[str]:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit <= settings.max_connections:
        yield (
            f"{env_name('max_connections')}: {settings.max_connections}, but a process may open only {limit} files "
            "(ulimit -Hn), and each connection takes one"
        )


def _store_warnings(settings: Settings) -> Iterator[str]:
    if settings.on_store_failure == "allow_verified":
        yield (
            f"{env_name('on_store_failure')}: while the store is unavailable, sessions that were ended elsewhere pass "
            f"for up to {settings.degraded_max:g} s ({env_name('degraded_max')}), and failed logins are not counted"
        )


def _data_dir_warnings(settings: Settings) -> Iterator[str]:
    if settings.redis_url is not None:
        return
    try:
        found = settings.data_dir.stat()
    except OSError:  # not there yet, and made for its owner alone; or a failure of `check` itself
        return
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "every user" if found.st_mode & stat.S_IWOTH else "the group"
        yield (
            f"{env_name('data_dir')}: {who} of this host can write to {str(settings.data_dir)!r}, and replace the "
            "sessions in it (chmod go-w)"
        )


def _transport_warnings(settings: Settings) -> Iterator[str]:
    if settings.upstream_http2 == "auto" and not (settings.upstream_url or "https:").startswith("https:"):
        yield (
            f"{env_name('upstream_http2')}: auto has no effect without https://; a backend that is known to speak "
            "HTTP/2 gets it with prior"
        )
    for field, risk in (
        ("jwks_url", "an attacker on the network can replace the keys"),
        ("upstream_url", "an attacker on the network can read tokens and write identity headers"),
        ("login_check_url", "an attacker on the network can read passwords"),
    ):
        if field in ISSUE_FIELDS and settings.tokens == "observe":
            continue
        parts = urlsplit(getattr(settings, field) or "")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            yield f"{env_name(field)}: plain http:// to {parts.hostname}, which is not this host: {risk}"
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
        except OSError:  # removed since it was read, so there is nothing to protect
            continue
        if mode & stat.S_IROTH:
            yield f"{name}: every user of this host can read {str(path)!r} (chmod o-r)"
