"""Settings of tokens: keys, claims, the places where tokens are found, and the issuing of tokens."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import SecretStr

from gatekeeper.settings import grammars as grammar
from gatekeeper.settings.group import SettingsGroup, setting
from gatekeeper.settings.secrets import (
    IntrospectionClient,
    hmac_secret_reader,
    introspection_client_reader,
    is_pem,
    public_key_reader,
    secret_octets,
    signing_key_reader,
    split_pem,
)
from gatekeeper.settings.types import ListReader, SettingReader, ca_file, choice, duration, free_text, integer

# RFC 7518 section 3.2.
USUAL_SECRET_FLOOR = 32
DEFAULT_ALGORITHMS = {"hmac": ("HS256",), "public": ("RS256", "ES256", "EdDSA")}
# The additional token source where TOKEN_TRANSPORT is `cookie`: the cookie that Gatekeeper sets.
ACCESS_COOKIE_SOURCE = "cookie:__Host-access"
# Settings that have no effect unless TOKENS is `issue`.
ISSUE_FIELDS = (
    *("signing_key", "access_token_ttl", "refresh_reuse_window", "login_check_url", "login_user_pointer"),
    *("login_claims", "token_transport"),
)

_setting = partial(setting, group="Tokens")

_CREDENTIAL_PATTERNS = ListReader(parse=grammar.parse_credential_pattern, accepted=grammar.PATTERN_WORDS, none="word")


def _source_key(source: str) -> str:
    """The form in which two token sources are the same: schemes and names of headers have no letter case."""
    return source.lower() if source.startswith(("scheme:", "header:")) else source


_CLAIM = free_text("the name of a claim, or a dotted path to it", most=256)
_CLAIM_OR_NONE = SettingReader(
    parse=lambda text: None if text.lower() == "none" else _CLAIM.parse(text), accepted=f"{_CLAIM.accepted}; or none"
)
_PLACES = ListReader(
    parse=grammar.parse_token_place,
    accepted="JSON pointers such as /user/token, header:NAME and cookie:NAME, separated by commas; or none",
    none="empty",
)


class TokenSettings(SettingsGroup):
    """The third group of docs/settings.md: "Tokens"."""

    jwt_secret: Annotated[tuple[SecretStr, ...], hmac_secret_reader()] = _setting(
        (),
        "HMAC secrets that verify tokens, one a line; `base64:…` stands for the bytes that it decodes to. Not together "
        "with public keys or a key set.",
        example="changeme-to-what-openssl-rand-base64-48-prints",
    )
    jwt_public_key: Annotated[str | None, public_key_reader()] = _setting(
        None, "Public keys that verify tokens.", example="/etc/gatekeeper/jwt.pub.pem"
    )
    jwks_url: Annotated[
        str | None, SettingReader(parse=grammar.parse_key_set_url, accepted="an http:// or https:// URL without a user")
    ] = _setting(
        None,
        "The URL of the identity provider's key set (JWKS).",
        example="https://idp.example.com/.well-known/jwks.json",
    )
    jwks_ca_file: Annotated[Path | None, ca_file()] = _setting(
        None,
        "The certificate authorities that verify the host of `JWKS_URL`, instead of this host's.",
        example="/etc/gatekeeper/ca.pem",
    )
    jwt_algorithms: Annotated[
        tuple[str, ...] | None,
        ListReader(
            parse=grammar.parse_algorithm,
            accepted=f"{', '.join(grammar.ALGORITHMS['hmac'])} with HMAC secrets; "
            f"{', '.join(grammar.ALGORITHMS['public'])} with public or private keys or a key set",
        ),
    ] = _setting(
        None,
        "The signature algorithms that are allowed; HMAC and public-key algorithms never together.",
        default_text="by key: `HS256`; `RS256,ES256,EdDSA`",
        example="RS256",
    )
    jwt_issuer: Annotated[
        tuple[str, ...] | None,
        ListReader(
            parse=free_text("").parse, accepted="the exact `iss` of the tokens; several are separated by commas"
        ),
    ] = _setting(
        None,
        "The issuers (`iss`) of which every token must name one.",
        default_text="not checked",
        example="https://idp.example.com/",
    )
    jwt_audience: Annotated[
        tuple[str, ...] | None,
        ListReader(
            parse=free_text("").parse, accepted="the exact `aud` of the tokens; several are separated by commas"
        ),
    ] = _setting(
        None,
        "The audiences (`aud`) of which every token must name one.",
        default_text="not checked",
        example="my-api",
    )
    jwt_secret_floor: Annotated[int, integer(16, USUAL_SECRET_FLOOR)] = _setting(
        str(USUAL_SECRET_FLOOR),
        "The least length of an HMAC secret in bytes. Under 32 a warning is written at each start.",
    )
    jwt_required_claims: Annotated[
        tuple[tuple[str, str], ...],
        ListReader(
            parse=grammar.parse_required_claim,
            accepted="claims, each once, with their values separated by commas, such as type=access,scope=api; or none",
            none="word",
            key=itemgetter(0),
        ),
    ] = _setting(
        "none",
        "Claims that every token must have, with exactly these values; a claim that is a list must hold the value. A "
        "claim named here is judged by that alone: otherwise one that says `refresh`, `id`, `reset`, `verify`, `mfa`, "
        "`2fa` or `otp` makes a token bad.",
    )
    jwt_types: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_header_type,
            accepted="media types separated by commas, such as access; or none",
            none="word",
        ),
    ] = _setting(
        "none",
        "Header types (`typ`) of access tokens beside `JWT` and `at+jwt`; in any letter case, with or without "
        "`application/`.",
    )
    opaque_bearer_paths: Annotated[
        tuple[str, ...], ListReader(parse=grammar.parse_pattern, accepted=grammar.PATTERN_WORDS, none="word")
    ] = _setting(
        "none",
        "Paths where a Bearer that is no JWT, such as an API key, passes as it is, for the backend to judge: 16 to 512 "
        "characters with at most one dot that do not begin with `ey`. No identity header is sent.",
    )
    error_body: Annotated[
        str | None,
        SettingReader(
            parse=grammar.parse_error_body,
            accepted="JSON with the words {status}, {code}, {detail}, {reason} and {request_id}",
        ),
    ] = _setting(
        None,
        "The body of errors on forwarded paths, for clients that know the shape of the backend only; else that of "
        "`ERROR_DIALECT`. A string that is one word alone becomes its value, a number or null too.",
        example='{"statusCode":"{status}","message":"{detail}","error":"{code}"}',
    )
    jwt_leeway: Annotated[float, duration("0s", "300s")] = _setting(
        "10s", "The clock difference that is allowed when the times of a token are checked."
    )
    jwt_user_claim: Annotated[str, _CLAIM] = _setting(
        "sub",
        "The claim that names the user, or a dotted path to it: at each level the longest name that fits is taken, so "
        "names with dots and URLs work.",
    )
    user_name_claim: Annotated[str | None, _CLAIM_OR_NONE] = _setting(
        "none",
        "The claim that holds the name by which people know the user, or a dotted path to it, for the native API: as "
        "it was when the session opened.",
        example="preferred_username",
    )
    roles_claim: Annotated[
        str, SettingReader(parse=grammar.parse_dotted_claim, accepted="the name of a claim, or a dotted path to it")
    ] = _setting(
        "roles",
        "The claim that holds the roles, or a dotted path to it: a list of names or of objects with `authority` or "
        "`name`, an object whose members are roles, or a string split at spaces and commas. If it is a boolean, `true` "
        "makes the user an admin.",
    )
    admin_roles: Annotated[
        tuple[str, ...],
        ListReader(parse=free_text("").parse, accepted="roles separated by commas; or none", none="word"),
    ] = _setting("admin", "Roles, or boolean claims that are `true`, which make a user an admin; letter case counts.")
    token_sources: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_token_source,
            accepted="header, scheme:NAME, header:NAME, cookie:NAME, query:NAME and subprotocol separated by commas",
            key=_source_key,
        ),
    ] = _setting(
        "header,cookie:access_token",
        "The places where a request may carry its token, in this order. `header`: `Authorization: Bearer`; "
        "`scheme:JWT`: another scheme there; `scheme:`: no scheme, the token alone; `header:X-Access-Token`: another "
        "header; `query` and `subprotocol` for WebSockets, `query` also for a `GET` with `Accept: text/event-stream`.",
    )
    tokens: Annotated[Literal["observe", "issue"], choice("observe", "issue")] = _setting(
        "observe",
        "The issuer of tokens. `observe`: the backend issues them, and Gatekeeper reads its login responses. `issue`: "
        "Gatekeeper issues them.",
    )
    login_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _setting(
        "*/auth/login,/login", "Paths where clients sign in. A pattern without a method is for POST."
    )
    refresh_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _setting(
        "*/auth/refresh,/refresh", "Paths where clients renew their tokens. A pattern without a method is for POST."
    )
    logout_paths: Annotated[tuple[str, ...], _CREDENTIAL_PATTERNS] = _setting(
        "*/auth/logout,/logout", "Paths where clients sign out. A pattern without a method is for POST."
    )
    login_token_pointers: Annotated[tuple[str, ...], _PLACES] = _setting(
        "none",
        "Where the backend's responses to logins and refreshes hold the access token, besides the usual "
        "places. These come first, in this order.",
        example="/user/token,header:Authorization,cookie:jwt",
    )
    login_refresh_pointers: Annotated[tuple[str, ...], _PLACES] = _setting(
        "none",
        "Where these responses hold the refresh token, likewise.",
        example="/user/renewal,cookie:rt",
    )
    refresh_token_sources: Annotated[tuple[str, ...], _PLACES] = _setting(
        "none",
        "Where refresh requests hold the refresh token, besides the usual places: in JSON or a form (`/name`), in a "
        "header or a cookie.",
        example="/renewal,header:X-Refresh-Token,cookie:rt",
    )
    login_name_fields: Annotated[
        tuple[str, ...],
        ListReader(parse=grammar.parse_field_name, accepted="names separated by commas, such as username,email"),
    ] = _setting(
        "username,email,identifier,login,phone,account",
        "The names under which a login holds its user name, for counting failures: in its body or query, at any depth, "
        "as `username`, `user[username]`, `username[]` or `UserName`. Every value found counts.",
    )
    login_failure_status: Annotated[
        tuple[int, ...],
        ListReader(parse=grammar.parse_failure_status, accepted="statuses separated by commas, such as 401,403"),
    ] = _setting(
        "401,403",
        "The statuses by which the backend refuses a user name or password. A response that hands out a good token is "
        "no refusal, whatever its status.",
    )
    signing_key: Annotated[tuple[SecretStr, ...], signing_key_reader()] = _setting(
        (),
        "With `TOKENS=issue`: the keys that sign tokens, all of one kind. The first one signs, all of them verify.",
        default_text="first `JWT_SECRET`",
        example="changeme-to-what-openssl-rand-base64-48-prints",
    )
    access_token_ttl: Annotated[float, duration("1s", "3650d")] = _setting(
        "15m",
        "With `TOKENS=issue`: the life of an access token, never longer than that of its session.",
        alias="GATEKEEPER_ACCESS_TOKEN_EXPIRE_MINUTES",
        alias_unit="m",
    )
    refresh_reuse_window: Annotated[float, duration("0s", "5m")] = _setting(
        "60s",
        "With `TOKENS=issue`: the time in which a refresh token that comes again gets the same new tokens. Later it "
        "gets other ones, while those are unused; after that it ends its session.",
    )
    login_check_url: Annotated[
        str | None, SettingReader(parse=grammar.parse_login_check, accepted=grammar.LOGIN_CHECK_WORDS)
    ] = _setting(
        None,
        "With `TOKENS=issue`: the endpoint that checks passwords.",
        default_text="required with `TOKENS=issue`, unless `LOGIN_PATHS` is `none`",
        example="/internal/login",
    )
    login_user_pointer: Annotated[
        str,
        SettingReader(parse=grammar.parse_pointer, accepted="a JSON pointer (RFC 6901), such as /id or /data/user/id"),
    ] = _setting("/id", "With `TOKENS=issue`: the place of the user in the response of `LOGIN_CHECK_URL`.")
    login_claims: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_login_claim,
            accepted=f"names separated by commas, never {', '.join(grammar.OWN_CLAIMS)}; or none",
            none="word",
        ),
    ] = _setting("roles", "With `TOKENS=issue`: the members of that response that become claims of the token.")
    token_transport: Annotated[Literal["body", "cookie"], choice("body", "cookie")] = _setting(
        "body",
        "With `TOKENS=issue`: the way clients get their tokens. `body`: in JSON. `cookie`: as the cookies "
        "`__Host-access` and `__Host-refresh`.",
    )
    introspection_clients: Annotated[tuple[IntrospectionClient, ...], introspection_client_reader()] = _setting(
        (),
        "The clients of `/oauth/revoke` and `/oauth/introspect`. Without any, both endpoints are off.",
        example="billing:changeme-to-what-openssl-rand-base64-48-prints",
    )
    backchannel_issuer: Annotated[str | None, free_text("the exact `iss` of the logout tokens")] = _setting(
        None,
        "The issuer whose logout tokens are accepted; switches on `/_gatekeeper/backchannel-logout`.",
        example="https://idp.example.com/",
    )

    @property
    def key_kind(self) -> Literal["hmac", "public"]:
        """The kind of the keys that verify tokens, signing keys included where Gatekeeper issues them."""
        if self.jwt_secret or (self.tokens == "issue" and self.signing_secrets):
            return "hmac"
        return "public"

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The allowed signature algorithms: as set, else by the kind of key."""
        return self.jwt_algorithms or DEFAULT_ALGORITHMS[self.key_kind]

    @property
    def hmac_secrets(self) -> tuple[bytes, ...]:
        """The secrets of `jwt_secret` in clear. Never show them."""
        return _octets(self.jwt_secret)

    @property
    def public_keys_pem(self) -> tuple[str, ...]:
        """The PEM blocks of `jwt_public_key`."""
        return split_pem(self.jwt_public_key or "")

    @property
    def signing_secrets(self) -> tuple[bytes, ...]:
        """The HMAC secrets that sign, in clear: those of `signing_key`, else of `jwt_secret`.

        The first one signs. Empty where `signing_key` holds private keys. Never show them.
        """
        return () if self.signing_keys_pem else _octets(self.signing_key or self.jwt_secret)

    @property
    def signing_keys_pem(self) -> tuple[str, ...]:
        """The private keys that sign, one PEM block each; the first one signs. Never show them."""
        texts = (secret.get_secret_value() for secret in self.signing_key)
        return tuple(text for text in texts if is_pem(text))

    @property
    def effective_token_sources(self) -> tuple[str, ...]:
        """`token_sources`, followed by the cookie that Gatekeeper itself sets."""
        own = self.tokens == "issue" and self.token_transport == "cookie"  # noqa: S105
        if own and ACCESS_COOKIE_SOURCE not in self.token_sources:
            return (*self.token_sources, ACCESS_COOKIE_SOURCE)
        return self.token_sources


def _octets(secrets: tuple[SecretStr, ...]) -> tuple[bytes, ...]:
    return tuple(secret_octets(secret.get_secret_value()) for secret in secrets)
