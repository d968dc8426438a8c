"""Settings: the defaults, every problem at once, the output of the commands, and the generated files."""

from __future__ import annotations

import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from gatekeeper.errors import ConfigError
from gatekeeper.settings import IntrospectionClient, ListenAddress, Settings, describe, load, warnings
from gatekeeper.settings.reference import env_file, settings_page
from gatekeeper.settings.source import setting_infos
from tests.settings.reading import BASE, DEFAULTS, ROOT, SECRET, problem, problems, read

DEFAULT_VALUES: dict[str, Any] = {
    "upstream_url": None,
    "upstream_connect_timeout": 5.0,
    "upstream_timeout": 60.0,
    "upstream_max_age": 300.0,
    "upstream_http2": "off",
    "upstream_ca_file": None,
    "listen": ListenAddress(host="127.0.0.1", port=8000),
    "ops_listen": ListenAddress(host="127.0.0.1", port=9090),
    "workers": 1,
    "max_header_bytes": 65536,
    "max_headers": 100,
    "header_timeout": 10.0,
    "body_timeout": 30.0,
    "keepalive_timeout": 75.0,
    "keepalive_max_age": 3600.0,
    "max_connections": 10_000,
    "max_body": None,
    "shutdown_delay": 0.0,
    "shutdown_grace": 30.0,
    "trusted_proxies": (),
    "client_address_header": ("x-forwarded-for", "forwarded", "x-real-ip"),
    "identity_headers": (
        ("X-User-Id", "sub", None),
        ("X-Session-Id", "session", None),
        ("X-User-Roles", "roles", None),
    ),
    "forward_authorization": True,
    "public_paths": (),
    "dialects": ("django", "express", "fastapi", "mockstream", "native", "users_me"),
    "change_password_url": None,
    "error_dialect": "fastapi",
    "cors_origins": (),
    "language": "en",
    "rate_limit": (50, 1.0),
    "login_rate_limit": (10, 900.0),
    "audit_retention": (100_000, None),
    "debug_endpoints": False,
    "log_format": None,
    "log_level": "info",
    "redis_url": None,
    "store_ca_file": None,
    "data_dir": Path(".gatekeeper"),
    "key_prefix": "gk:",
    "store_timeout": 2.0,
    "store_replicas": 0,
    "on_store_failure": "deny",
    "degraded_max": 300.0,
    "session_ttl": 86400.0,
    "idle_timeout": 1800.0,
    "device_limit": 3,
    "device_limit_policy": "evict_idle",
    "exempt_users": (),
    "unknown_session": None,
    "geo": "off",
    "ended_session_ttl": 86400.0,
    "jwt_secret": (SecretStr(SECRET),),
    "jwt_public_key": None,
    "jwks_url": None,
    "jwks_ca_file": None,
    "jwt_algorithms": None,
    "jwt_issuer": None,
    "jwt_audience": None,
    "jwt_secret_floor": 32,
    "jwt_required_claims": (),
    "jwt_types": (),
    "opaque_bearer_paths": (),
    "error_body": None,
    "jwt_leeway": 10.0,
    "jwt_user_claim": "sub",
    "user_name_claim": None,
    "roles_claim": "roles",
    "admin_roles": ("admin",),
    "token_sources": ("header", "cookie:access_token"),
    "tokens": "observe",
    "login_paths": ("*/auth/login", "/login"),
    "refresh_paths": ("*/auth/refresh", "/refresh"),
    "logout_paths": ("*/auth/logout", "/logout"),
    "login_token_pointers": (),
    "login_refresh_pointers": (),
    "refresh_token_sources": (),
    "login_name_fields": ("username", "email", "identifier", "login", "phone", "account"),
    "login_failure_status": (401, 403),
    "signing_key": (),
    "access_token_ttl": 900.0,
    "refresh_reuse_window": 60.0,
    "login_check_url": None,
    "login_user_pointer": "/id",
    "login_claims": ("roles",),
    "token_transport": "body",
    "introspection_clients": (),
    "backchannel_issuer": None,
    "secret_files": (),
}


# Defaults


def test_every_default_is_the_promised_one_byte_for_byte() -> None:
    assert {info.variable: info.default for info in setting_infos(Settings)} == {
        f"GATEKEEPER_{name}": default for name, default in DEFAULTS.items()
    }


def test_the_defaults_are_read_to_these_values() -> None:
    settings = load(BASE)
    assert {name: getattr(settings, name) for name in Settings.model_fields} == DEFAULT_VALUES


def test_a_default_that_is_written_out_changes_nothing() -> None:
    written = {f"GATEKEEPER_{name}": default for name, default in DEFAULTS.items() if default is not None}
    assert load(BASE | written) == load(BASE)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(BASE).workers = 2  # type: ignore[misc]


# Reporting


def test_every_problem_is_reported_at_once() -> None:  # C01
    environ = {
        "GATEKEEPER_JWT_SECRET": "changeme",
        "GATEKEEPER_DEVICE_LIMITS": "3",
        "GATEKEEPER_LISTEN": "8000",
        "GATEKEEPER_JWT_LEEWAY": "301s",
        "GATEKEEPER_OPS_LISTEN": "0.0.0.0:7000",
        "GATEKEEPER_REDIS_URL_FILE": "/does/not/exist",
    }
    found = problems(environ, require_upstream=True)
    assert [line.partition(":")[0] for line in found] == [
        "GATEKEEPER_DEVICE_LIMITS",
        "GATEKEEPER_REDIS_URL_FILE",
        "GATEKEEPER_LISTEN",
        "GATEKEEPER_JWT_SECRET",
        "GATEKEEPER_JWT_LEEWAY",
        "GATEKEEPER_UPSTREAM_URL",
    ]
    assert found[4] == (
        "GATEKEEPER_JWT_LEEWAY: read '301s', which is over 300s; "
        "accepted: a duration from 0s to 300s, such as 250ms, 15s, 30m, 24h or a number of seconds"
    )


def test_a_conflict_is_reported_beside_the_problems_of_other_fields() -> None:
    found = problems({"GATEKEEPER_WORKERS": "none"})
    assert len(found) == 2
    assert "GATEKEEPER_JWT_SECRET, GATEKEEPER_JWT_PUBLIC_KEY, GATEKEEPER_JWKS_URL: none is set" in found[1]


def test_no_conflict_is_made_up_from_a_field_that_could_not_be_read() -> None:
    assert len(problems({"GATEKEEPER_JWT_SECRET": "short"})) == 1
    assert len(problems({"GATEKEEPER_JWT_SECRET_FILE": "/does/not/exist"})) == 1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GATEKEEPER_DEVICE_LIMITS", "GATEKEEPER_DEVICE_LIMIT?"),
        ("GATEKEEPER_JWT_SECRETS", "GATEKEEPER_JWT_SECRET?"),
        ("gatekeeper_workers", "GATEKEEPER_WORKERS?"),
        ("GATEKEEPER_JWT_ISSUER_FILE", "GATEKEEPER_JWT_ISSUER (only secrets"),
        ("GATEKEEPER_XYZZY", "docs/settings.md"),
    ],
)
def test_an_unknown_name_is_a_problem_with_the_nearest_known_one(name: str, nearest: str) -> None:  # C01
    [line] = problems(BASE | {name: "its value might be a secret"})
    assert line.startswith(f"{name}: unknown setting; ")
    assert nearest in line
    assert "might" not in line


@pytest.mark.parametrize(
    "name",
    [
        *("GATEKEEPER_SERVICE_HOST", "GATEKEEPER_SERVICE_PORT", "GATEKEEPER_SERVICE_PORT_HTTP", "GATEKEEPER_PORT"),
        *("GATEKEEPER_PORT_8000_TCP", "GATEKEEPER_PORT_8000_TCP_PROTO", "GATEKEEPER_PORT_8000_TCP_PORT"),
        *("GATEKEEPER_PORT_53_UDP_ADDR", "GATEKEEPER_PORT_9_SCTP", "GATEKEEPER_REDIS_SERVICE_HOST"),
        *("GATEKEEPER_MY_OPS_SERVICE_PORT_METRICS", "GATEKEEPER_REDIS_PORT", "GATEKEEPER_REDIS_PORT_6379_TCP_ADDR"),
    ],
)
def test_variables_that_kubernetes_adds_for_services_are_ignored(name: str) -> None:
    assert load(BASE | {name: "tcp://10.0.0.1:8000"}) == load(BASE)


@pytest.mark.parametrize("name", ["GATEKEEPER_PORTS", "GATEKEEPER_TRANSPORT", "GATEKEEPER_PORT_X_TCP"])
def test_a_name_that_only_resembles_a_kubernetes_variable_is_not_ignored(name: str) -> None:
    assert problems(BASE | {name: "1"})


def test_variables_of_other_programs_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:  # C04
    others = {
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
        "REQUESTS_CA_BUNDLE": "/tmp/x.pem",
        "SSL_CERT_FILE": "/tmp/x.pem",
        "FORWARDED_ALLOW_IPS": "*",
        "WEB_CONCURRENCY": "9",
        "WORKERS": "9",
        "LISTEN": "0.0.0.0:1",
        "DEVICE_LIMIT": "99",
        "JWT_SECRET": "x",
        "REDIS_URL": "redis://elsewhere",
    }
    assert load(BASE | others) == load(BASE)
    for name, value in {**BASE, **others}.items():
        monkeypatch.setenv(name, value)
    assert load() == load(BASE)
    monkeypatch.setenv("GATEKEEPER_WORKERS", "5")
    assert load().workers == 5
    assert Settings(jwt_secret=(SecretStr(SECRET),)).workers == 1


def test_an_alias_is_read_but_not_beside_its_name() -> None:
    alias = "SESSION_CONSISTENCY_TIMEOUT_SECONDS"
    assert load(BASE | {f"GATEKEEPER_{alias}": "0.5"}).store_timeout == 0.5
    assert problem(alias, "x").startswith(f"GATEKEEPER_{alias}: read 'x', which is not a duration")
    assert "GATEKEEPER_STORE_TIMEOUT and GATEKEEPER_" in problem(alias, "1", STORE_TIMEOUT="1")


def test_the_upstream_is_required_only_where_asked_for() -> None:
    assert load(BASE).upstream_url is None
    [line] = problems(BASE, require_upstream=True)
    assert line.startswith("GATEKEEPER_UPSTREAM_URL: not set; accepted: http://host[:port]")


LISTS_WITHOUT_DEFAULT = (
    *("TRUSTED_PROXIES", "PUBLIC_PATHS", "CORS_ORIGINS", "EXEMPT_USERS"),
    *("LOGIN_TOKEN_POINTERS", "LOGIN_REFRESH_POINTERS", "REFRESH_TOKEN_SOURCES"),
)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "JWT_SECRET"])
def test_an_empty_variable_is_a_problem_unless_it_is_a_list_that_defaults_to_none(name: str) -> None:  # C02
    if name in LISTS_WITHOUT_DEFAULT:
        assert read(name, " ") == ()
        return
    line = next(line for line in problems(BASE | {f"GATEKEEPER_{name}": ""}) if "is empty" in line)
    assert line.startswith(f"GATEKEEPER_{name}: read '', which is empty; accepted: ")


def test_settings_made_in_python_obey_the_same_rules() -> None:
    made = Settings(jwt_secret=(SecretStr(SECRET),), session_ttl=60, device_limit=None, public_paths=("/a", "GET /b"))
    assert (made.session_ttl, made.device_limit, made.public_paths) == (60.0, None, ("/a", "GET /b"))
    wrong: list[dict[str, Any]] = [
        {"session_ttl": -1},
        {"public_paths": ("x",)},
        {"public_paths": ("/a", "/a")},
        {"token_sources": ()},
        {"redis_url": SecretStr("http://x")},
        {"jwt_secret": ()},
        {"tokens": "issue"},
        {"signing_key": (SecretStr("short"),)},
        {"introspection_clients": (("billing", SecretStr(SECRET)),)},
        {"introspection_clients": (IntrospectionClient("billing", SecretStr("short")),)},
        {"workerz": 1},
    ]
    for values in wrong:
        with pytest.raises(ValidationError):
            Settings(**({"jwt_secret": (SecretStr(SECRET),)} | values))


# Output of the commands


def test_describe_tells_each_value_and_its_source(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("unix://gate:hunter2@/run/valkey.sock?db=1&password=hunter2\n")
    environ = BASE | {"GATEKEEPER_REDIS_URL_FILE": str(file), "GATEKEEPER_SESSION_CONSISTENCY_TIMEOUT_SECONDS": "3"}
    found = {line.variable: (line.value, line.source) for line in describe(environ)}
    assert list(found) == [f"GATEKEEPER_{name}" for name in DEFAULTS]
    assert found["GATEKEEPER_REDIS_URL"] == ("unix://***@/run/valkey.sock?db=1&password=***", "file")
    assert found["GATEKEEPER_JWT_SECRET"] == ("***", "environment")
    assert found["GATEKEEPER_STORE_TIMEOUT"] == ("3", "environment")
    assert found["GATEKEEPER_SESSION_TTL"] == ("24h", "default")
    assert found["GATEKEEPER_JWT_ALGORITHMS"] == ("HS256", "default")
    assert found["GATEKEEPER_UNKNOWN_SESSION"] == ("adopt", "default")
    assert found["GATEKEEPER_SIGNING_KEY"] == ("first JWT_SECRET", "default")
    assert found["GATEKEEPER_UPSTREAM_URL"] == ("required by serve", "default")
    with pytest.raises(ConfigError):
        describe({})


QUIET = BASE | {
    "GATEKEEPER_JWT_ISSUER": "https://idp",
    "GATEKEEPER_JWT_AUDIENCE": "api",
    "GATEKEEPER_TRUSTED_PROXIES": "10.0.0.0/8",
}


def warned(**more: str) -> list[str]:
    environ = QUIET | {f"GATEKEEPER_{name}": value for name, value in more.items()}
    if "JWKS_URL" in more:
        del environ["GATEKEEPER_JWT_SECRET"]
    return warnings(load(environ))


def test_issuers_and_audiences_are_lists() -> None:
    for name in ("JWT_ISSUER", "JWT_AUDIENCE"):
        assert read(name, "https://idp") == ("https://idp",)
        assert read(name, "https://idp/a, https://idp/b") == ("https://idp/a", "https://idp/b")
        for wrong in ("", ",", "a,", "a,a"):
            assert problem(name, wrong).startswith(f"GATEKEEPER_{name}: read ")


def test_a_missing_issuer_and_audience_are_warned_of() -> None:
    assert [line.partition(":")[0] for line in warnings(load(BASE))] == [
        "GATEKEEPER_JWT_ISSUER",
        "GATEKEEPER_JWT_AUDIENCE",
        "GATEKEEPER_TRUSTED_PROXIES",
    ]
    assert warned() == []


def test_more_connections_than_files_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 500))
    assert not any("MAX_CONNECTIONS" in line for line in warned(MAX_CONNECTIONS="499"))
    (line,) = [line for line in warned(MAX_CONNECTIONS="500") if "MAX_CONNECTIONS" in line]
    assert line.startswith("GATEKEEPER_MAX_CONNECTIONS: 500, but a process may open only 500 files")


def test_limits_that_hold_for_users_only_are_warned_of() -> None:
    # Rule 5.11: address limits are off behind a private peer while TRUSTED_PROXIES is empty; `check` warns
    [line] = warned(TRUSTED_PROXIES="none")
    assert line == (
        "GATEKEEPER_TRUSTED_PROXIES: none, so behind a proxy with a private or loopback address "
        "GATEKEEPER_RATE_LIMIT and GATEKEEPER_LOGIN_RATE_LIMIT limit users only, not client addresses"
    )
    [line] = warned(TRUSTED_PROXIES="none", RATE_LIMIT="off")
    assert line.endswith("address GATEKEEPER_LOGIN_RATE_LIMIT limits users only, not client addresses")
    assert warned(TRUSTED_PROXIES="none", RATE_LIMIT="off", LOGIN_RATE_LIMIT="off") == []


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [  # C08, J01
        ("JWKS_URL", "http://idp.example.com/jwks", 1),
        ("JWKS_URL", "https://idp.example.com/jwks", 0),
        ("JWKS_URL", "http://127.0.0.1:9/jwks", 0),
        ("UPSTREAM_URL", "http://app:3000", 1),
        ("UPSTREAM_URL", "http://[::1]:3000", 0),
        ("UPSTREAM_URL", "http+unix:///run/app.sock", 0),
        ("REDIS_URL", "redis://store", 2),
        ("REDIS_URL", "redis://:pw@10.0.0.1", 1),
        ("REDIS_URL", "rediss://store", 1),
        ("REDIS_URL", "rediss://:pw@store", 0),
        ("REDIS_URL", "rediss://store?password=pw", 0),
        ("REDIS_URL", "redis://127.1.2.3", 0),
        ("REDIS_URL", "redis://localhost", 0),
        ("REDIS_URL", "unix:///run/valkey.sock", 0),
        ("REDIS_URL", "redis+sentinel://localhost,store/main", 2),
        ("REDIS_URL", "redis+sentinel://:pw@a,b/main", 2),
        ("REDIS_URL", "rediss+cluster://:pw@a,b", 0),
        ("PUBLIC_PATHS", "/health,*", 1),
        ("PUBLIC_PATHS", "GET /*", 1),
        ("PUBLIC_PATHS", "/a*", 0),
    ],
)
def test_unprotected_connections_are_warned_of(name: str, value: str, count: int) -> None:
    found = warned(**{name: value})
    assert len(found) == count
    assert all(line.startswith(f"GATEKEEPER_{name}: ") for line in found)


def test_a_world_readable_secret_file_is_a_warning_and_no_problem(tmp_path: Path) -> None:  # C01
    file = tmp_path / "url"
    file.write_text("unix:///run/valkey.sock\n")
    file.chmod(0o644)
    assert warned(REDIS_URL_FILE=str(file)) == [
        f"GATEKEEPER_REDIS_URL_FILE: every user of this host can read '{file}' (chmod o-r)"
    ]
    file.chmod(0o640)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert warned(REDIS_URL_FILE=str(file)) == []


# The generated files


def test_the_generated_files_are_up_to_date() -> None:
    assert (ROOT / "config" / "gatekeeper.env").read_text() == env_file()
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_the_env_file_lists_every_variable_commented_out_with_a_value_that_is_read() -> None:
    lines = [line for line in env_file().splitlines() if "=" in line and line.startswith("#GATEKEEPER_")]
    values = dict(line.removeprefix("#").split("=", 1) for line in lines)
    assert list(values) == [f"GATEKEEPER_{name}" for name in DEFAULTS]
    assert {name: DEFAULTS[name.removeprefix("GATEKEEPER_")] or text for name, text in values.items()} == values
    # Left out: examples of secrets, files that are not on this host, and settings that fit one kind of key only.
    kinds = ("_JWT_SECRET", "_FILE", "_JWT_PUBLIC_KEY", "_JWKS_URL", "_JWT_ALGORITHMS")
    secrets = ("_SIGNING_KEY", "_INTROSPECTION_CLIENTS")
    good = {name: text for name, text in values.items() if not name.endswith((*kinds, *secrets))}
    load(BASE | good, require_upstream=True)
    load({name: text for name, text in values.items() if name.endswith(("_JWKS_URL", "_JWT_ALGORITHMS"))})
    assert not any(line and not line.startswith("#") for line in env_file().splitlines())
