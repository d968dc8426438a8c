"""Settings of the proxy: backend, listeners, limits, trusted proxies, headers for the backend, dialects, logs."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

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

# The names in `gatekeeper.dialects.DIALECTS`; a test compares them. Written out so that settings import no dialect, and
# with it the sessions and the store.
DIALECT_NAMES = ("django", "express", "fastapi", "mockstream", "native", "users_me")

_setting = partial(setting, group="Proxy")

_ADDRESS = SettingReader(parse=grammar.parse_listen, accepted="host:port, [v6]:port, unix:/path or fd:<number>")
_PUBLIC_PATTERNS = ListReader(parse=grammar.parse_pattern, accepted=grammar.PATTERN_WORDS, none="empty")
_RATE = or_off(SettingReader(parse=grammar.parse_rate, accepted="number/period, such as 50/s or 10/15m"))


class ProxySettings(SettingsGroup):
    """The first group of docs/settings.md: "Proxy"."""

    upstream_url: Annotated[
        str | None,
        SettingReader(
            parse=grammar.parse_upstream,
            accepted="http://host[:port], https://host[:port] or http+unix:///path.sock, without a path or a user",
        ),
    ] = _setting(
        None, "The address of the backend.", default_text="required by `serve`", example="http://127.0.0.1:8080"
    )
    upstream_connect_timeout: Annotated[float, duration("10ms", "5m")] = _setting(
        "5s", "The longest time that connecting to the backend may take."
    )
    upstream_timeout: Annotated[float, duration("10ms", "24h")] = _setting(
        "60s",
        "The longest silence of the backend while its response is due. The whole response may last longer.",
    )
    upstream_max_age: Annotated[float, duration("1s", "24h")] = _setting(
        "5m",
        "The age at which a connection to the backend ends, between requests; up to a fifth earlier, so that not all "
        "end at once. With the next connection the name of the backend is resolved again.",
    )
    upstream_http2: Annotated[Literal["off", "auto", "prior"], choice("off", "auto", "prior")] = _setting(
        "off",
        "HTTP/2 to the backend. `auto`: where an `https://` backend chooses it. `prior`: always, without asking, over "
        "plain TCP and Unix sockets too. WebSockets have HTTP/1.1 connections of their own.",
    )
    upstream_ca_file: Annotated[Path | None, ca_file()] = _setting(
        None,
        "The certificate authorities for the backend's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/backend-ca.pem",
    )
    listen: Annotated[ListenAddress, _ADDRESS] = _setting(
        "127.0.0.1:8000",
        "The address that clients connect to. Port 0 takes any free port; `fd:3` is an inherited socket. Where it is "
        "not set, the first socket of systemd (`LISTEN_FDS`) comes before the default.",
    )
    ops_listen: Annotated[ListenAddress | None, or_off(_ADDRESS)] = _setting(
        "127.0.0.1:9090", "The address of health checks and metrics, apart from that for clients."
    )
    workers: Annotated[int, integer(1, 256)] = _setting("1", "The number of worker processes.")
    max_header_bytes: Annotated[int, size("1KiB", "1MiB")] = _setting(
        "64KiB", "The largest size of the request line, headers and trailers of one request together; above it, 431."
    )
    max_headers: Annotated[int, integer(10, 10_000)] = _setting(
        "100", "The largest number of headers and trailers of one request; above it, 431."
    )
    header_timeout: Annotated[float, duration("10ms", "1h")] = _setting(
        "10s", "The longest time that the head of a request may take to arrive; then 408."
    )
    body_timeout: Annotated[float, duration("10ms", "1h")] = _setting(
        "30s", "The longest silence of a client within a request body; then 408."
    )
    keepalive_timeout: Annotated[float, duration("1s", "1h")] = _setting(
        "75s", "The time that an idle client connection stays open."
    )
    keepalive_max_age: Annotated[float, duration("1s", "24h")] = _setting(
        "1h",
        "The age at which a client connection ends, between requests, which its last response says with `Connection: "
        "close`; up to a fifth earlier, so that not all clients come back at once.",
    )
    max_connections: Annotated[int, integer(1, 1_000_000)] = _setting(
        "10000", "The largest number of client connections of one worker; further ones are closed at once."
    )
    max_body: Annotated[int | None, or_off(size("1B", "1TiB"))] = _setting(
        "off", "The largest request body; above it, 413.", example="10MB"
    )
    shutdown_delay: Annotated[float, duration("0s", "1h")] = _setting(
        "0s", "The time after SIGTERM in which new requests are still accepted."
    )
    shutdown_grace: Annotated[float, duration("0s", "1h")] = _setting(
        "30s", "The time after `SHUTDOWN_DELAY` in which running requests may finish."
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
        "The networks of your proxies, whose forwarding headers (such as `X-Forwarded-For`) are believed. The client's "
        "address is the right-most one that is not in these networks. Where such a proxy names none it is unknown, and "
        "no limit counts it.",
    )
    client_address_header: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_address_header,
            accepted="names of headers separated by commas, each once, such as x-forwarded-for",
        ),
    ] = _setting(
        "x-forwarded-for,forwarded,x-real-ip",
        "The headers by which one of `TRUSTED_PROXIES` names the client's address; of those that are there the first "
        "one counts. Name the one that your proxy sets: another one may be the client's own words.",
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
        "The headers that identify the client to the backend: `sub` is the user, `session` the integer id of the "
        "session, `roles` the roles joined by commas, `claim:<name>` a claim. With `none` the backend gets none.",
    )
    forward_authorization: Annotated[bool, boolean()] = _setting(
        "true", "Pass the token of an admitted client on to the backend."
    )
    public_paths: Annotated[tuple[str, ...], _PUBLIC_PATTERNS] = _setting(
        "none", "Paths that need no session. `*` also matches `/`."
    )
    dialects: Annotated[
        tuple[str, ...],
        ListReader(
            parse=choice(*DIALECT_NAMES).parse,
            accepted=f"names out of {', '.join(DIALECT_NAMES)} separated by commas; or none",
            none="word",
        ),
    ] = _setting(",".join(DIALECT_NAMES), "The session APIs that Gatekeeper serves (docs/dialects.md).")
    change_password_url: Annotated[
        str | None, SettingReader(parse=grammar.parse_page, accepted="a path, or an https:// URL without a user")
    ] = _setting(
        None,
        "Where people change their password: the native API names it to who reports a session.",
        example="/account/password",
    )
    error_dialect: Annotated[str, choice(*DIALECT_NAMES)] = _setting(
        "fastapi", "The dialect of error responses on paths that belong to no dialect."
    )
    cors_origins: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_origin,
            accepted="origins separated by commas, such as https://app.example.com; or none; never *",
            none="empty",
        ),
    ] = _setting(
        "none", "The origins whose pages may read Gatekeeper's own responses.", example="https://app.example.com"
    )
    language: Annotated[Literal["en", "fr"], choice("en", "fr")] = _setting(
        "en",
        "The language of messages, unless a request chooses one: by `language` in its body or by `Accept-Language`.",
    )
    rate_limit: Annotated[tuple[int, float] | None, _RATE] = _setting(
        "50/s",
        "The rate of calls to Gatekeeper's own endpoints: for each user, four times as many for each client address. "
        "Bursts of four seconds' worth pass.",
    )
    login_rate_limit: Annotated[tuple[int, float] | None, _RATE] = _setting(
        "10/15m",
        "The rate of failed logins: for each pair of user name and client address, and ten times as many for each user "
        "name and for each client address.",
    )
    debug_endpoints: Annotated[bool, boolean()] = _setting(
        "false", "Open `GET /debug/session-info` to all users; administrators can always call it."
    )
    log_format: Annotated[Literal["json", "text"] | None, choice("json", "text")] = _setting(
        None, "The format of log lines.", default_text="`json` when not a terminal, else `text`", example="json"
    )
    log_level: Annotated[str, choice("debug", "info", "warning", "error", "critical")] = _setting(
        "info", "The lowest severity of log lines that are written."
    )
    audit_retention: Annotated[
        tuple[int | None, float | None],
        SettingReader(
            parse=grammar.parse_retention, accepted="a number of events, or a duration with its unit, such as 90d"
        ),
    ] = _setting(
        "100000",
        "How many events the audit log keeps in the store, or for how long. Sessions that became idle or expired by "
        "themselves have a stream of their own, with the same bound.",
    )
