"""A good environment for tests of settings, and functions that read one variable on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gatekeeper.errors import ConfigError
from gatekeeper.settings import load

ROOT = Path(__file__).parent.parent.parent
SECRET = "R5vQ8mZk2Xw7Lp4Tn9Bc3Hd6Jf1Gs0Ya"  # 32 bytes
OTHER_SECRET = "Qe, with commas and spaces: 7Hd2Kx9"
PRIVATE_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE_PEM = PRIVATE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PEM = PRIVATE_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
BASE = {"GATEKEEPER_JWT_SECRET": SECRET}

# Rule 2.2, byte for byte; None where there is no value to write down.
DEFAULTS: dict[str, str | None] = {
    "UPSTREAM_URL": None,
    "UPSTREAM_CONNECT_TIMEOUT": "5s",
    "UPSTREAM_TIMEOUT": "60s",
    "UPSTREAM_MAX_AGE": "5m",
    "UPSTREAM_HTTP2": "off",
    "UPSTREAM_CA_FILE": None,
    "LISTEN": "127.0.0.1:8000",
    "OPS_LISTEN": "127.0.0.1:9090",
    "WORKERS": "1",
    "MAX_HEADER_BYTES": "64KiB",
    "MAX_HEADERS": "100",
    "HEADER_TIMEOUT": "10s",
    "BODY_TIMEOUT": "30s",
    "KEEPALIVE_TIMEOUT": "75s",
    "KEEPALIVE_MAX_AGE": "1h",
    "MAX_CONNECTIONS": "10000",
    "MAX_BODY": "off",
    "SHUTDOWN_DELAY": "0s",
    "SHUTDOWN_GRACE": "30s",
    "TRUSTED_PROXIES": "none",
    "CLIENT_ADDRESS_HEADER": "x-forwarded-for,forwarded,x-real-ip",
    "IDENTITY_HEADERS": "X-User-Id=sub,X-Session-Id=session,X-User-Roles=roles",
    "FORWARD_AUTHORIZATION": "true",
    "PUBLIC_PATHS": "none",
    "DIALECTS": "django,express,fastapi,mockstream,native,users_me",
    "CHANGE_PASSWORD_URL": None,
    "ERROR_DIALECT": "fastapi",
    "CORS_ORIGINS": "none",
    "LANGUAGE": "en",
    "RATE_LIMIT": "50/s",
    "LOGIN_RATE_LIMIT": "10/15m",
    "DEBUG_ENDPOINTS": "false",
    "LOG_FORMAT": None,
    "LOG_LEVEL": "info",
    "AUDIT_RETENTION": "100000",
    "REDIS_URL": None,
    "STORE_CA_FILE": None,
    "DATA_DIR": ".gatekeeper",
    "KEY_PREFIX": "gk:",
    "STORE_TIMEOUT": "2s",
    "STORE_REPLICAS": "0",
    "ON_STORE_FAILURE": "deny",
    "DEGRADED_MAX": "5m",
    "SESSION_TTL": "24h",
    "IDLE_TIMEOUT": "30m",
    "DEVICE_LIMIT": "3",
    "DEVICE_LIMIT_POLICY": "evict_idle",
    "EXEMPT_USERS": "none",
    "UNKNOWN_SESSION": None,
    "GEO": "off",
    "ENDED_SESSION_TTL": "24h",
    "JWT_SECRET": None,
    "JWT_PUBLIC_KEY": None,
    "JWKS_URL": None,
    "JWKS_CA_FILE": None,
    "JWT_ALGORITHMS": None,
    "JWT_ISSUER": None,
    "JWT_AUDIENCE": None,
    "JWT_SECRET_FLOOR": "32",
    "JWT_REQUIRED_CLAIMS": "none",
    "JWT_TYPES": "none",
    "OPAQUE_BEARER_PATHS": "none",
    "ERROR_BODY": None,
    "JWT_LEEWAY": "10s",
    "JWT_USER_CLAIM": "sub",
    "USER_NAME_CLAIM": "none",
    "ROLES_CLAIM": "roles",
    "ADMIN_ROLES": "admin",
    "TOKEN_SOURCES": "header,cookie:access_token",
    "TOKENS": "observe",
    "LOGIN_PATHS": "*/auth/login,/login",
    "REFRESH_PATHS": "*/auth/refresh,/refresh",
    "LOGOUT_PATHS": "*/auth/logout,/logout",
    "LOGIN_TOKEN_POINTERS": "none",
    "LOGIN_REFRESH_POINTERS": "none",
    "REFRESH_TOKEN_SOURCES": "none",
    "LOGIN_NAME_FIELDS": "username,email,identifier,login,phone,account",
    "LOGIN_FAILURE_STATUS": "401,403",
    "SIGNING_KEY": None,
    "ACCESS_TOKEN_TTL": "15m",
    "REFRESH_REUSE_WINDOW": "60s",
    "LOGIN_CHECK_URL": None,
    "LOGIN_USER_POINTER": "/id",
    "LOGIN_CLAIMS": "roles",
    "TOKEN_TRANSPORT": "body",
    "INTROSPECTION_CLIENTS": None,
    "BACKCHANNEL_ISSUER": None,
}


def read(name: str, value: str, **more: str) -> Any:
    """Return the field of a variable that is set to `value`."""
    environ = {f"GATEKEEPER_{key}": text for key, text in {name: value, **more}.items()}
    keys = {"GATEKEEPER_JWT_PUBLIC_KEY", "GATEKEEPER_JWKS_URL"} & set(environ)
    return getattr(load(environ if keys else BASE | environ), name.lower())


def problems(environ: Mapping[str, str], *, require_upstream: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ, require_upstream=require_upstream)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def problem(name: str, value: str, **more: str) -> str:
    """Return the only problem of a variable that is set to `value`."""
    environ = {f"GATEKEEPER_{key}": text for key, text in {name: value, **more}.items()}
    [line] = problems(BASE | environ)
    return line
