"""The settings of the front: the backend, the listeners, what passes, what is told, how much of it."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from gatekeeper.dialects import DIALECTS
from gatekeeper.settings import grammars as grammar
from gatekeeper.settings.grammars import IdentityHeader, ListenAddress
from gatekeeper.settings.group import SettingsGroup, setting
from gatekeeper.settings.types import (
    ListReader,
    SettingReader,
    boolean,
    ca_file,
    choice,
    duration,
    integer,
    or_off,
    size,
)

DIALECT_NAMES = tuple(DIALECTS)

_setting = partial(setting, group="Proxy")

_PUBLIC_PATTERNS = ListReader(parse=grammar.parse_pattern, accepted=grammar.PATTERN_WORDS, none="empty")
_RATE = or_off(SettingReader(parse=grammar.parse_rate, accepted="number/period, such as 50/s or 10/15m"))


class ProxySettings(SettingsGroup):
    """The first group of docs/settings.md."""

    upstream_url: Annotated[
        str | None,
        SettingReader(
            parse=grammar.parse_upstream,
            accepted="http://host[:port], https://host[:port] or http+unix:///path.sock, without a path or a user",
        ),
    ] = _setting(None, "The backend.", default_text="required by `serve`", example="http://127.0.0.1:8080")
    upstream_connect_timeout: Annotated[float, duration("10ms", "5m")] = _setting(
        "5s", "How long connecting to the backend may take."
    )
    upstream_timeout: Annotated[float, duration("10ms", "24h")] = _setting(
        "60s", "How long the backend may be silent; not a bound on the whole answer: a stream may last."
    )
    upstream_transport: Annotated[Literal["native", "httpx"], choice("native", "httpx")] = _setting(
        "native",
        "The client that speaks to the backend: `native` is Gatekeeper's own, over HTTP/1.1; `httpx` speaks HTTP/2 to "
        "`https://` backends that offer it, and over HTTP/1.1 is some thirty times slower, and passes neither trailers "
        "nor interim answers.",
    )
    upstream_ca_file: Annotated[Path | None, ca_file()] = _setting(
        None,
        "Authorities that sign the backend's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/backend-ca.pem",
    )
    listen: Annotated[
        ListenAddress, SettingReader(parse=grammar.parse_listen, accepted="host:port, [v6]:port or unix:/path")
    ] = _setting("127.0.0.1:8000", "Where clients connect; port 0 is any free one.")
    ops_listen: Annotated[
        ListenAddress | None,
        or_off(SettingReader(parse=grammar.parse_listen, accepted="host:port, [v6]:port or unix:/path")),
    ] = _setting("127.0.0.1:9090", "Health and metrics, on a port of their own.")
    workers: Annotated[int, integer(1, 256)] = _setting("1", "Processes.")
    max_header_bytes: Annotated[int, size("1KiB", "1MiB")] = _setting(
        "64KiB", "The most that the request line, the headers and the trailers of one request may have together; 431."
    )
    max_headers: Annotated[int, integer(10, 10_000)] = _setting(
        "100", "The most headers and trailers that one request may have; 431."
    )
    header_timeout: Annotated[float, duration("10ms", "1h")] = _setting(
        "10s", "How long the head of a request may take to arrive; 408."
    )
    body_timeout: Annotated[float, duration("10ms", "1h")] = _setting(
        "30s", "How long a client may be silent inside a body; 408."
    )
    keepalive_timeout: Annotated[float, duration("1s", "1h")] = _setting(
        "75s", "How long an idle client connection stays open."
    )
    max_connections: Annotated[int, integer(1, 1_000_000)] = _setting(
        "10000", "The most client connections of one worker; over it, connections are closed as they come."
    )
    max_body: Annotated[int | None, or_off(size("1B", "1TiB"))] = _setting(
        "off", "The largest body of a request; 413.", example="10MB"
    )
    shutdown_delay: Annotated[float, duration("0s", "1h")] = _setting(
        "0s", "After SIGTERM: how long requests are still accepted."
    )
    shutdown_grace: Annotated[float, duration("0s", "1h")] = _setting(
        "30s", "After that: how long requests in flight may take to finish."
    )
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        ListReader(
            parse=grammar.parse_network,
            accepted="networks or addresses separated by commas, such as 10.0.0.0/8, or none; "
            "never all addresses: name those of your proxies",
            none="empty",
        ),
    ] = _setting(
        "none",
        "Networks whose forwarding headers are believed; the client's address is the right-most one that is not in "
        "them.",
    )
    identity_headers: Annotated[
        tuple[IdentityHeader, ...],
        ListReader(
            parse=grammar.parse_identity_header,
            accepted="Header-Name=kind separated by commas, each header once, kind being sub, session, roles or "
            "claim:<name>; or none",
            none="word",
            key=lambda header: grammar.fold_header(header[0]),
        ),
    ] = _setting(
        "X-User-Id=sub,X-Session-Id=session,X-User-Roles=roles",
        "What the backend is told: the user, the integer id of the session, the roles joined by commas, a claim. "
        "With none it is told nothing.",
    )
    forward_authorization: Annotated[bool, boolean()] = _setting("true", "Pass an admitted client's token on.")
    public_paths: Annotated[tuple[str, ...], _PUBLIC_PATTERNS] = _setting(
        "none", "Paths that need no session; `*` matches `/` too."
    )
    dialects: Annotated[
        tuple[str, ...],
        ListReader(
            parse=choice(*DIALECT_NAMES).parse,
            accepted=f"names out of {', '.join(DIALECT_NAMES)} separated by commas; or none",
            none="word",
        ),
    ] = _setting(",".join(DIALECT_NAMES), "The session APIs that Gatekeeper speaks.")
    error_dialect: Annotated[str, choice(*DIALECT_NAMES)] = _setting(
        "fastapi", "Whose error shape an answer takes where no dialect was matched."
    )
    cors_origins: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_origin,
            accepted="origins separated by commas, such as https://app.example.com; or none; never *",
            none="empty",
        ),
    ] = _setting("none", "Origins whose pages may read Gatekeeper's own answers.", example="https://app.example.com")
    language: Annotated[Literal["en", "fr"], choice("en", "fr")] = _setting(
        "en", "The language of messages where a request asks for none: by `language` in its body or `Accept-Language`."
    )
    rate_limit: Annotated[tuple[int, float] | None, _RATE] = _setting(
        "50/s",
        "Calls of Gatekeeper's own endpoints per user; four times that per client address; bursts of four seconds' "
        "worth.",
    )
    login_rate_limit: Annotated[tuple[int, float] | None, _RATE] = _setting(
        "10/15m",
        "Failed logins per user name and client address together; ten times that per user name, and per client "
        "address.",
    )
    debug_endpoints: Annotated[bool, boolean()] = _setting(
        "false", "`GET /debug/session-info` for everybody; administrators always have it."
    )
    log_format: Annotated[Literal["json", "text"] | None, choice("json", "text")] = _setting(
        None, "How log lines are written.", default_text="`json` when not a terminal, else `text`", example="json"
    )
    log_level: Annotated[str, choice("debug", "info", "warning", "error", "critical")] = _setting(
        "info", "The least severe lines that are written."
    )
