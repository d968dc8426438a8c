"""The table of the endpoints beside the session APIs: login, refresh and logout, OAuth, and the key set.

Settings switch each of them on. A row gives path, shapes and errors, as a row of a dialect does; `web/endpoints.py`
carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from gatekeeper.dialects import fastapi, oauth
from gatekeeper.dialects.base import Dialect
from gatekeeper.errors import Reason
from gatekeeper.http.paths import PathPattern, Route, compile_pattern


class Serves(Enum):
    """The purpose of an endpoint."""

    LOGIN = "login"
    REFRESH = "refresh"
    LOGOUT = "logout"
    KEYS = "keys"
    REVOKE = "revoke"
    INTROSPECT = "introspect"
    BACKCHANNEL = "backchannel"


class TokenPair(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a login or refresh (C-01, C-02). With `TOKEN_TRANSPORT=cookie` the tokens are only in cookies."""

    access_token: str | msgspec.UnsetType = msgspec.UNSET
    refresh_token: str | msgspec.UnsetType = msgspec.UNSET
    token_type: str
    expires_in: int


class LoggedOut(msgspec.Struct, frozen=True):
    message: str


class Nothing(msgspec.Struct, frozen=True):
    pass


class Introspection(msgspec.Struct, frozen=True, omit_defaults=True):
    active: bool
    token_type: str | None = None
    sub: str | None = None
    exp: float | None = None
    iat: float | None = None
    nbf: float | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    jti: str | None = None
    scope: str | None = None
    client_id: str | None = None
    username: str | None = None


class KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    `path` is a fixed path, or a pattern from the settings (`*/auth/login`). `accepts` pairs each member of the request
    body with True if it is required. `form` means an urlencoded form instead of JSON.
    """

    serves: Serves
    method: str
    path: str
    summary: str
    returns: Any
    example: Any
    dialect: Dialect = fastapi
    accepts: Sequence[tuple[str, bool]] = ()
    form: bool = False
    refusals: Sequence[Reason] = ()

    @property
    def is_pattern(self) -> bool:
        return self.serves in _BY_KIND

    @property
    def route(self) -> Route:
        return Route(self.method, self.path, self)


_LANGUAGE: Final = ("language", False)
_CREDENTIALS: Final = (Reason.BAD_REQUEST, Reason.BODY_TOO_LARGE, Reason.UNSUPPORTED_MEDIA_TYPE, Reason.RATE_LIMITED)

UNKNOWN_CLIENT: Final = "The client is unknown, or its secret is wrong"
_FORM: Final = (Reason.BAD_REQUEST, Reason.BODY_TOO_LARGE, Reason.UNSUPPORTED_MEDIA_TYPE)

KEYS: Final = Endpoint(
    serves=Serves.KEYS,
    method="GET",
    path="/.well-known/jwks.json",
    summary="The public keys of the tokens that Gatekeeper issues (RFC 7517)",
    returns=KeySet,
    example={"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "…", "use": "sig", "alg": "EdDSA", "kid": "…"}]},
)
REVOKE: Final = Endpoint(
    serves=Serves.REVOKE,
    method="POST",
    path="/oauth/revoke",
    summary="End the session of a token (RFC 7009)",
    returns=Nothing,
    example={},
    dialect=oauth,
    accepts=(("token", True), ("token_type_hint", False)),
    form=True,
    refusals=(*_FORM, Reason.INVALID_CREDENTIALS),
)
INTROSPECT: Final = Endpoint(
    serves=Serves.INTROSPECT,
    method="POST",
    path="/oauth/introspect",
    summary="Tell if a token is active, and its claims (RFC 7662)",
    returns=Introspection,
    example={"active": True, "token_type": "Bearer", "sub": "74", "exp": 1736846100},
    dialect=oauth,
    accepts=(("token", True), ("token_type_hint", False)),
    form=True,
    refusals=(*_FORM, Reason.INVALID_CREDENTIALS),
)
BACKCHANNEL: Final = Endpoint(
    serves=Serves.BACKCHANNEL,
    method="POST",
    path="/_gatekeeper/backchannel-logout",
    summary="Accept an identity provider's logout token (OpenID Connect Back-Channel Logout 1.0)",
    returns=Nothing,
    example={},
    accepts=(("logout_token", True),),
    form=True,
    refusals=_FORM,
)
_BY_KIND: Final = {
    Serves.LOGIN: Endpoint(
        serves=Serves.LOGIN,
        method="POST",
        path="",
        summary="Sign in with a user name and a password",
        returns=TokenPair,
        example={"access_token": "eyJ…", "refresh_token": "MTIz…", "token_type": "bearer", "expires_in": 900},
        accepts=(("username", True), ("password", True), _LANGUAGE),
        refusals=(*_CREDENTIALS, Reason.INVALID_CREDENTIALS, Reason.SESSION_LIMIT_EXCEEDED),
    ),
    Serves.REFRESH: Endpoint(
        serves=Serves.REFRESH,
        method="POST",
        path="",
        summary="A new pair of tokens for a refresh token",
        returns=TokenPair,
        example={"access_token": "eyJ…", "refresh_token": "MTIz…", "token_type": "bearer", "expires_in": 900},
        accepts=(("refresh_token", False), _LANGUAGE),
        refusals=(*_CREDENTIALS, Reason.REFRESH_TOKEN_INVALID, Reason.TOKEN_INVALID, Reason.ORIGIN_NOT_ALLOWED),
    ),
    Serves.LOGOUT: Endpoint(
        serves=Serves.LOGOUT,
        method="POST",
        path="",
        summary="Sign out: end the session of the token",
        returns=LoggedOut,
        example={"message": "Logged out successfully"},
        accepts=(("access_token", False), _LANGUAGE),
        refusals=(*_CREDENTIALS, Reason.TOKEN_MISSING, Reason.TOKEN_INVALID, Reason.ORIGIN_NOT_ALLOWED),
    ),
}


def by_pattern(serves: Serves, pattern: str) -> Endpoint:
    """Returns the endpoint for a path pattern of the settings, such as `*/auth/login` or `PUT /session`."""
    method, _, path = pattern.rpartition(" ")
    return msgspec.structs.replace(_BY_KIND[serves], method=method.strip() or "POST", path=path)


def compiled(endpoint: Endpoint) -> PathPattern:
    """Compiles the path of an endpoint that comes from a pattern."""
    return compile_pattern(f"{endpoint.method} {endpoint.path}")
