"""The settings, one field each: type, rule, default, meaning, and the rules that bind several of them.

A setting's variable is `GATEKEEPER_` and the field's name in capitals. Defaults stand here as an operator would write
them and are read by the same rules. Durations are seconds as `float`; what is `off` or has no default is `None`;
lists are tuples. Secrets are pydantic's `SecretStr`: `settings.redis_url.get_secret_value()`; for keys there are
`hmac_secrets` and `public_keys_pem`.

`config/gatekeeper.env` and `docs/settings.md` are made from this file: `python -m gatekeeper.settings.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gatekeeper.dialects import DIALECTS
from gatekeeper.settings import grammars as grammar
from gatekeeper.settings.conflicts import conflicts
from gatekeeper.settings.grammars import IdentityHeader, ListenAddress
from gatekeeper.settings.secrets import hmac_secret_reader, public_key_reader, split_pem, store_url_reader
from gatekeeper.settings.types import (
    ListReader,
    Reader,
    boolean,
    ca_file,
    choice,
    directory,
    duration,
    or_off,
    text_of,
    whole,
)

DIALECT_NAMES = tuple(DIALECTS)
DEFAULT_PUBLIC_ALGORITHMS = ("RS256", "ES256", "EdDSA")
DEFAULT_HMAC_ALGORITHMS = ("HS256",)


def _setting(
    default: str | tuple[()] | None,
    meaning: str,
    *,
    group: str,
    default_text: str = "none",
    example: str = "",
    alias: str | None = None,
) -> Any:
    about: JsonDict = {"group": group, "default_text": default_text, "example": example, "alias": alias}
    return Field(default=default, description=meaning, json_schema_extra=about)


_front = partial(_setting, group="Front")
_store = partial(_setting, group="Store and sessions")
_tokens = partial(_setting, group="Tokens")

_PATTERN_WORDS = (
    "patterns separated by commas, such as /health, /static/*, */docs or GET /docs/*; or none for no path at all"
)
_PUBLIC_PATTERNS = ListReader(parse=grammar.parse_pattern, accepted=_PATTERN_WORDS, none="empty")
_CREDENTIAL_PATTERNS = ListReader(parse=grammar.parse_credential_pattern, accepted=_PATTERN_WORDS, none="word")
_CLAIM = text_of("the name of a claim", most=256)


class Settings(BaseSettings):
    """What Gatekeeper was told to do.

    Made by `gatekeeper.settings.load`. Made directly, it takes its arguments only and never the environment, and
    problems are pydantic's `ValidationError` (a `ValueError`), which shows no values.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    upstream_url: Annotated[
        str | None,
        Reader(
            parse=grammar.parse_upstream,
            accepted="http://host[:port], https://host[:port] or http+unix:///path.sock, without a path or a user",
        ),
    ] = _front(None, "The backend.", default_text="required by `serve`", example="http://127.0.0.1:8080")
    upstream_connect_timeout: Annotated[float, duration("10ms", "5m")] = _front(
        "5s", "How long connecting to the backend may take."
    )
    upstream_timeout: Annotated[float, duration("10ms", "24h")] = _front(
        "60s", "How long the backend may be silent; not a bound on the whole answer: a stream may last."
    )
    upstream_ca_file: Annotated[Path | None, ca_file()] = _front(
        None,
        "Authorities that sign the backend's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/backend-ca.pem",
    )
    listen: Annotated[
        ListenAddress, Reader(parse=grammar.parse_listen, accepted="host:port, [v6]:port or unix:/path")
    ] = _front("127.0.0.1:8000", "Where clients connect; port 0 is any free one.")
    ops_listen: Annotated[
        ListenAddress | None,
        or_off(Reader(parse=grammar.parse_listen, accepted="host:port, [v6]:port or unix:/path")),
    ] = _front("127.0.0.1:9090", "Health and metrics, on a port of their own.")
    workers: Annotated[int, whole(1, 256)] = _front("1", "Processes.")
    keepalive_timeout: Annotated[float, duration("1s", "1h")] = _front(
        "75s", "How long an idle client connection stays open."
    )
    shutdown_delay: Annotated[float, duration("0s", "1h")] = _front(
        "0s", "After SIGTERM: how long requests are still accepted."
    )
    shutdown_grace: Annotated[float, duration("0s", "1h")] = _front(
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
    ] = _front(
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
    ] = _front(
        "X-User-Id=sub,X-Session-Id=session,X-User-Roles=roles",
        "What the backend is told: the user, the integer id of the session, the roles joined by commas, a claim. "
        "With none it is told nothing.",
    )
    forward_authorization: Annotated[bool, boolean()] = _front("true", "Pass an admitted client's token on.")
    public_paths: Annotated[tuple[str, ...], _PUBLIC_PATTERNS] = _front(
        "none", "Paths that need no session; `*` matches `/` too."
    )
    dialects: Annotated[
        tuple[str, ...],
        ListReader(
            parse=choice(*DIALECT_NAMES).parse,
            accepted=f"names out of {', '.join(DIALECT_NAMES)} separated by commas; or none",
            none="word",
        ),
    ] = _front(",".join(DIALECT_NAMES), "The session APIs that Gatekeeper speaks.")
    error_dialect: Annotated[str, choice(*DIALECT_NAMES)] = _front(
        "fastapi", "Whose error shape an answer takes where no dialect was matched."
    )
    cors_origins: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_origin,
            accepted="origins separated by commas, such as https://app.example.com; or none; never *",
            none="empty",
        ),
    ] = _front("none", "Origins whose pages may read Gatekeeper's own answers.", example="https://app.example.com")
    language: Annotated[Literal["en", "fr"], choice("en", "fr")] = _front(
        "en", "The language of messages where a request asks for none: by `language` in its body or `Accept-Language`."
    )
    rate_limit: Annotated[
        tuple[int, float] | None,
        or_off(Reader(parse=grammar.parse_rate, accepted="number/period, such as 50/s or 10/15m")),
    ] = _front(
        "50/s",
        "Calls of Gatekeeper's own endpoints per user; four times that per client address; bursts of four seconds' "
        "worth.",
    )
    debug_endpoints: Annotated[bool, boolean()] = _front(
        "false", "`GET /debug/session-info` for everybody; administrators always have it."
    )
    log_format: Annotated[Literal["json", "text"] | None, choice("json", "text")] = _front(
        None, "How log lines are written.", default_text="`json` when not a terminal, else `text`", example="json"
    )
    log_level: Annotated[str, choice("debug", "info", "warning", "error", "critical")] = _front(
        "info", "The least severe lines that are written."
    )

    redis_url: Annotated[SecretStr | None, store_url_reader()] = _store(
        None,
        "The store: a Redis from 6.2 or a Valkey from 7.2.",
        default_text="embedded Valkey",
        example="redis://127.0.0.1:6379/0",
    )
    store_ca_file: Annotated[Path | None, ca_file()] = _store(
        None,
        "Authorities that sign the store's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/store-ca.pem",
    )
    data_dir: Annotated[Path, directory()] = _store(
        ".gatekeeper", "Where the embedded Valkey keeps its data; processes with one directory share one Valkey."
    )
    key_prefix: Annotated[
        str,
        Reader(
            parse=grammar.parse_key_prefix, accepted="1 to 64 printable ASCII characters without spaces and {}*?[]\\"
        ),
    ] = _store("gk:", "First part of every key.")
    store_timeout: Annotated[float, duration("10ms", "1m")] = _store(
        "2s", "Bound on one store call.", alias="GATEKEEPER_SESSION_CONSISTENCY_TIMEOUT_SECONDS"
    )
    session_ttl: Annotated[float, duration("100ms", "3650d")] = _store("24h", "Absolute life of a session.")
    idle_timeout: Annotated[float | None, or_off(duration("100ms", "3650d"))] = _store(
        "30m", "The silence after which a session ends as idle."
    )
    device_limit: Annotated[int | None, or_off(whole(1, 100_000))] = _store(
        "3", "Live sessions per user; a lowered limit takes effect at the next sign-in."
    )
    device_limit_policy: Annotated[
        Literal["evict_idle", "evict_oldest", "reject"], choice("evict_idle", "evict_oldest", "reject")
    ] = _store("evict_idle", "Who gives way at the limit: the least recently active, the oldest, or the newcomer.")
    exempt_users: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_exemption,
            accepted="users, or role:<name>, separated by commas, such as backup,role:service; or none",
            none="empty",
        ),
    ] = _store("none", "Users without device limit and idle time-out, such as service accounts.")
    unknown_session: Annotated[Literal["adopt", "reject"], choice("adopt", "reject")] = _store(
        "adopt", "A good token without a session: open one, or refuse."
    )
    geo: Annotated[
        str,
        Reader(parse=grammar.parse_geo, accepted="off, country, or the path of an .mmdb file"),
    ] = _store(
        "off",
        "Where a session was opened, looked up at its opening: `country` from a small data set (extra `geo`), or from "
        "an `.mmdb` file.",
    )
    ended_session_ttl: Annotated[float, duration("0s", "3650d")] = _store(
        "24h", "How long the record of an ended session stays; at least until its last known token has expired."
    )

    jwt_secret: Annotated[tuple[SecretStr, ...], hmac_secret_reader()] = _tokens(
        (),
        "HMAC keys, one a line; all verify. Not together with a public key.",
        example="changeme-to-what-openssl-rand-base64-48-prints",
    )
    jwt_public_key: Annotated[str | None, public_key_reader()] = _tokens(
        None, "Public keys; all verify.", example="/etc/gatekeeper/jwt.pub.pem"
    )
    jwks_url: Annotated[
        str | None, Reader(parse=grammar.parse_key_set_url, accepted="an http:// or https:// URL without a user")
    ] = _tokens(
        None,
        "Where the identity provider publishes its key set.",
        example="https://idp.example.com/.well-known/jwks.json",
    )
    jwt_algorithms: Annotated[
        tuple[str, ...] | None,
        ListReader(
            parse=grammar.parse_algorithm,
            accepted=f"{', '.join(grammar.ALGORITHMS['hmac'])} with JWT_SECRET; "
            f"{', '.join(grammar.ALGORITHMS['public'])} with a public key or key set",
        ),
    ] = _tokens(
        None,
        "Allow-list of signature algorithms; HMAC and public-key algorithms never together.",
        default_text="by key: `HS256`; `RS256,ES256,EdDSA`",
        example="RS256",
    )
    jwt_issuer: Annotated[str | None, text_of("the exact `iss` of the tokens")] = _tokens(
        None, "Who must have issued a token.", default_text="not looked at", example="https://idp.example.com/"
    )
    jwt_audience: Annotated[str | None, text_of("the exact `aud` of the tokens")] = _tokens(
        None, "Whom a token must be for.", default_text="not looked at", example="my-api"
    )
    jwt_leeway: Annotated[float, duration("0s", "300s")] = _tokens("10s", "Clock difference allowed for in tokens.")
    jwt_user_claim: Annotated[str, _CLAIM] = _tokens("sub", "The claim that names the user.")
    roles_claim: Annotated[
        str, Reader(parse=grammar.parse_dotted_claim, accepted="the name of a claim, or a dotted path to it")
    ] = _tokens("roles", "The claim that holds the roles; a boolean claim named here makes an admin by `true`.")
    admin_roles: Annotated[
        tuple[str, ...],
        ListReader(parse=text_of("").parse, accepted="roles separated by commas; or none", none="word"),
    ] = _tokens("admin", "Roles that make an admin; exact case.")
    token_sources: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_token_source,
            accepted="header, cookie:NAME, query:NAME and subprotocol separated by commas",
        ),
    ] = _tokens(
        "header,cookie:access_token",
        "Where tokens are looked for, in this order; `query` and `subprotocol` for WebSockets only.",
    )
    login_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _tokens(
        "*/auth/login,/login", "Where clients sign in at the backend; without a method, POST."
    )
    refresh_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _tokens(
        "*/auth/refresh,/refresh", "Where clients renew their tokens; without a method, POST."
    )
    logout_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _tokens(
        "*/auth/logout,/logout", "Where clients sign out; without a method, POST."
    )

    # Not a setting: (variable, path) of every file that a secret was read from.
    secret_files: tuple[tuple[str, Path], ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment is read by `load` alone, which is told which environment that is.
        return (init_settings,)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The allow-list of signature algorithms: as set, else by the kind of key."""
        if self.jwt_algorithms is not None:
            return self.jwt_algorithms
        return DEFAULT_HMAC_ALGORITHMS if self.jwt_secret else DEFAULT_PUBLIC_ALGORITHMS

    @property
    def hmac_secrets(self) -> tuple[bytes, ...]:
        """The HMAC keys themselves, in UTF-8: not to be shown."""
        return tuple(secret.get_secret_value().encode() for secret in self.jwt_secret)

    @property
    def public_keys_pem(self) -> tuple[str, ...]:
        """The PEM blocks of `jwt_public_key`, each by itself."""
        return split_pem(self.jwt_public_key or "")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # An operator's line: what was set, secrets as pydantic masks them, keys left to `gatekeeper config`.
        hidden = {"jwt_public_key", "secret_files"}
        return [(n, v) for n, v in super().__repr_args__() if n in self.model_fields_set - hidden]

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if found := list(conflicts(self)):
            raise PydanticCustomError(
                "conflict", "{text}", {"text": "; ".join(c.problem for c in found), "conflicts": found}
            )
        return self
