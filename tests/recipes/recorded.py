"""Backends and identity providers that cannot run here, as recordings: what they answer, and what their tokens hold,
after their documentation and source. Only the times, ids and signatures are made anew.

A recording checks nothing. It says who asks by the header that Gatekeeper sets, and refreshes whatever it has given.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.recipes.walk import AT_GATEKEEPER, SECRET, BearerDevice, Device, Recipe, Said, said
from tests.servers import serve_asgi
from tests.tokens import forge

_RSA: Final = rsa.generate_private_key(65537, 2048)
_EC: Final = ec.generate_private_key(ec.SECP256R1())
_KEYS: Final = "/keys"
_UUID: Final = "8befeac4-8963-49da-a9ac-f310e8d922d8"
_HOUR: Final = 3600
Claims = dict[str, Any]
Answer = Callable[[Request, Mapping[str, Any]], Response]


def _times(seconds: int = _HOUR) -> Claims:
    now = int(time.time())
    return {"iat": now, "exp": now + seconds}


def _hs(claims: Claims, secret: str | bytes = SECRET) -> str:
    return forge.hs({"alg": "HS256", "typ": "JWT"}, claims, secret)


def _rs(claims: Claims, header: Mapping[str, str] = {"kid": "RS256-1"}) -> str:
    return forge.signed_by(_RSA, {"alg": "RS256", "typ": "JWT", **header}, claims)


async def _given(request: Request) -> dict[str, Any]:
    """The members of a body, JSON or a form, and of the query."""
    body = await request.body()
    query = dict(request.query_params)
    try:
        members: dict[str, Any] = json.loads(body or b"{}")
    except ValueError:
        members = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    return query | members


def _key_set(_: Request) -> Response:
    return JSONResponse(
        {"keys": [forge.jwk(_RSA, kid="RS256-1", alg="RS256"), forge.jwk(_EC, kid="ES256-1", alg="ES256")]}
    )


def _who(request: Request) -> Response:
    return JSONResponse({"user": request.headers.get("x-user-id")})


@contextmanager
def _recording(routes: Sequence[Route], _: Path) -> Iterator[str]:
    with serve_asgi(Starlette(routes=[Route("/me", _who), Route(_KEYS, _key_set), *routes])) as url:
        yield url


def _route(path: str, answer: Callable[[dict[str, Any]], Response], method: str = "POST") -> Route:
    async def endpoint(request: Request) -> Response:
        return answer(await _given(request))

    return Route(path, endpoint, methods=[method])


def _at_keys(url: str, _: Path) -> dict[str, str]:
    return {"jwks_url": url + _KEYS}


class _Asking(BearerDevice):
    def ask(self) -> Said:
        return said(self.http.get("/me"))


# Strapi


_STRAPI_SECRET: Final = "tobeModified/0123456789=="[:24]


def _strapi_access(session: str) -> str:
    return _hs({"userId": "1", "sessionId": session, "type": "access", **_times()}, _STRAPI_SECRET)


def _strapi_refresh(session: str) -> str:
    return _hs({"userId": "1", "sessionId": session, "type": "refresh", **_times(30 * 24 * _HOUR)}, _STRAPI_SECRET)


_STRAPI_USER: Final = {"id": 1, "documentId": "c8n5k1h3", "username": "alice", "email": "alice@example.org"}


def _strapi_login(_: Mapping[str, Any]) -> Response:
    return JSONResponse({"jwt": _hs({"id": 1, **_times()}, _STRAPI_SECRET), "user": _STRAPI_USER})


def _strapi_session(given: Mapping[str, Any]) -> Response:
    session = secrets.token_hex(16)
    answer = {"jwt": _strapi_access(session), "refreshToken": _strapi_refresh(session)}
    return JSONResponse(answer if "refreshToken" in given else {**answer, "user": _STRAPI_USER})


class Strapi(_Asking):
    user = '"1"'
    refreshes = False
    at_logout = AT_GATEKEEPER

    def sign_in(self) -> Said:
        credentials = {"identifier": "alice@example.org", "password": "wonderland-1"}
        return self.keep(self.http.post("/api/auth/local", json=credentials), "jwt", "refreshToken")


class StrapiSessions(Strapi):
    refreshes = True
    at_logout = "yes"

    def refresh(self) -> Said:
        answer = self.http.post("/api/auth/refresh", json={"refreshToken": self.refresh_token})
        return self.keep(answer, "jwt", "refreshToken")

    def logout(self) -> Said:
        return said(self.http.post("/api/auth/logout"))


# Keycloak: clients talk to it directly


_REALM: Final = "https://sso.example.org/realms/shop"


class Keycloak(_Asking):
    """Its sign-in, its refresh and its logout pass Gatekeeper by: a token is first seen with a request."""

    user = _UUID
    door = "at the first request"

    def _token(self, context: str) -> str:
        return _rs(
            {
                **_times(300),
                "auth_time": self._signed_in,
                "jti": f"{context}:{uuid.uuid4()}",
                "iss": _REALM,
                "aud": ["shop-api", "account"],
                "sub": _UUID,
                "typ": "Bearer",
                "azp": "shop-web",
                "sid": self._sid,
                "acr": "1",
                "allowed-origins": ["https://shop.example.org"],
                "realm_access": {"roles": ["default-roles-shop", "offline_access", "uma_authorization"]},
                "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
                "scope": "openid email profile",
                "email_verified": True,
                "preferred_username": "alice",
                "email": "alice@example.org",
            }
        )

    def sign_in(self) -> Said:
        self._sid, self._signed_in = str(uuid.uuid4()), int(time.time())
        self.bear(self._token("onrtac"))
        return self.ask()

    def sign_in_again(self) -> Said:
        """With a password, in the browser that Keycloak remembers: the same `sid`, and another `auth_time`."""
        self._signed_in += 1
        self.bear(self._token("onrtac"))
        return self.ask()

    def refresh(self) -> Said:
        self.bear(self._token("onrtrt"))
        return self.ask()

    def logout(self) -> Said:
        token = _rs(
            {
                **_times(120),
                "jti": str(uuid.uuid4()),
                "iss": _REALM,
                "aud": "shop-web",
                "sub": _UUID,
                "typ": "Logout",
                "sid": self._sid,
                "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
            }
        )
        return said(self.http.post("/_gatekeeper/backchannel-logout", data={"logout_token": token}))


# OAuth token endpoints: Auth0 behind a backend of one's own, Laravel Passport, Supabase


class _TokenEndpoint(_Asking):
    """One path for logins and refreshes, told apart by `grant_type`."""

    path: ClassVar[str] = "/oauth/token"
    grant: ClassVar[Mapping[str, str]] = {"grant_type": "password", "username": "alice", "password": "wonderland-1"}
    at_logout = AT_GATEKEEPER

    def sign_in(self) -> Said:
        return self.keep(self.http.post(self.path, data=dict(self.grant)), "access_token", "refresh_token")

    def refresh(self) -> Said:
        form = {"grant_type": "refresh_token", "refresh_token": self.refresh_token}
        return self.keep(self.http.post(self.path, data=form), "access_token", "refresh_token")


_TENANT: Final = "https://shop.eu.auth0.com/"


def _auth0(_: Mapping[str, Any]) -> Response:
    user = {"iss": _TENANT, "sub": "auth0|6553da60a54af58e29493993", **_times(86_400)}
    access = {
        **user,
        "aud": ["https://api.shop.example.org", f"{_TENANT}userinfo"],
        "azp": "K1AUPhZq8mRi0Q0pjhkfu1D7y6KjDQja",
        "scope": "openid profile email offline_access",
        "permissions": ["read:orders"],
        "https://shop.example.org/roles": ["customer"],
    }
    identity = {**user, "aud": access["azp"], "sid": secrets.token_hex(8), "name": "Alice", "nonce": "n"}
    return JSONResponse(
        {
            "access_token": _rs(access),
            "refresh_token": f"v1.{secrets.token_urlsafe(40)}",
            "id_token": _rs(identity),
            "scope": access["scope"],
            "expires_in": 86_400,
            "token_type": "Bearer",
        }
    )


class Auth0(_TokenEndpoint):
    user = "auth0|6553da60a54af58e29493993"
    grant: ClassVar[Mapping[str, str]] = {
        "grant_type": "authorization_code",
        "code": "a-code",
        "redirect_uri": "https://shop.example.org/callback",
    }


def _passport(_: Mapping[str, Any]) -> Response:
    now = time.time()
    claims = {
        "aud": "019a3c5e-5d0c-7c0e-9d0f-0a4d0b6f6b5e",
        "jti": secrets.token_hex(40),
        "iat": round(now, 6),
        "nbf": round(now, 6),
        "exp": round(now + 1_296_000, 6),
        "sub": "1",
        "scopes": [],
    }
    answer = {
        "token_type": "Bearer",
        "expires_in": 1_296_000,
        "access_token": _rs(claims, {}),
        "refresh_token": f"def502{secrets.token_hex(350)}",
    }
    return JSONResponse(answer)


class LaravelPassport(_TokenEndpoint):
    user = '"1"'


def _public_key(_: str, directory: Path) -> dict[str, str]:
    path = directory / "oauth-public.key"
    path.write_text(forge.pem(_RSA))
    return {"jwt_public_key": str(path)}


_PROJECT: Final = "https://abcdefghijklmnopqrst.supabase.co/auth/v1"


def _supabase(_: Mapping[str, Any]) -> Response:
    times = _times()
    claims = {
        "iss": _PROJECT,
        "sub": _UUID,
        "aud": "authenticated",
        **times,
        "email": "alice@example.org",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"email_verified": True},
        "role": "authenticated",
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": times["iat"]}],
        "session_id": str(uuid.uuid4()),
        "is_anonymous": False,
    }
    return JSONResponse(
        {
            "access_token": forge.signed_by(_EC, {"alg": "ES256", "kid": "ES256-1", "typ": "JWT"}, claims),
            "token_type": "bearer",
            "expires_in": _HOUR,
            "expires_at": times["exp"],
            "refresh_token": secrets.token_hex(6),
            "user": {"id": _UUID, "aud": "authenticated", "role": "authenticated", "email": "alice@example.org"},
        }
    )


class Supabase(_TokenEndpoint):
    user = _UUID
    at_logout = "yes"

    def sign_in(self) -> Said:
        # Before it signs in, its client bears the public key of the project.
        self.http.headers["apikey"] = _hs({"iss": "supabase", "ref": "abcd", "role": "anon", **_times()}, "anon" * 9)
        self.bear(self.http.headers["apikey"])
        answer = self.http.post(
            "/auth/v1/token?grant_type=password", json={"email": "alice@example.org", "password": "x"}
        )
        return self.keep(answer, "access_token", "refresh_token")

    def refresh(self) -> Said:
        body = {"refresh_token": self.refresh_token}
        return self.keep(
            self.http.post("/auth/v1/token?grant_type=refresh_token", json=body), "access_token", "refresh_token"
        )

    def logout(self) -> Said:
        return said(self.http.post("/auth/v1/logout?scope=local"))


# Rails with devise-jwt


def _devise(_: Mapping[str, Any], jti: str = "") -> Response:
    claims = {"jti": jti or str(uuid.uuid4()), "sub": "1", "scp": "user", "aud": None, **_times()}
    answer = {"status": {"code": 200, "message": "Logged in successfully."}, "data": {"id": 1}}
    return JSONResponse(answer, headers={"Authorization": f"Bearer {_hs(claims)}"})


class Rails(_Asking):
    user = '"1"'
    refreshes = False

    def sign_in(self) -> Said:
        credentials = {"user": {"email": "alice@example.org", "password": "wonderland-1"}}
        answer = self.http.post("/users/sign_in", json=credentials)
        if answer.is_success:
            self.http.headers["Authorization"] = answer.headers["Authorization"]
        return said(answer)

    def logout(self) -> Said:
        return said(self.http.delete("/users/sign_out"))


# Laravel with jwt-auth


def _jwt_auth(_: Mapping[str, Any]) -> Response:
    times = _times()
    claims = {
        "iss": "http://127.0.0.1:8000/api/auth/login",
        **times,
        "nbf": times["iat"],
        "jti": secrets.token_hex(8),
        "sub": "1",
        "prv": "23bd5c8949f600adb39e701c400872db7a5976f7",
    }
    return JSONResponse({"access_token": _hs(claims), "token_type": "bearer", "expires_in": _HOUR})


class LaravelJwtAuth(_Asking):
    user = '"1"'

    def sign_in(self) -> Said:
        credentials = {"email": "alice@example.org", "password": "wonderland-1"}
        return self.keep(self.http.post("/api/auth/login", json=credentials), "access_token")

    def refresh(self) -> Said:
        return self.keep(self.http.post("/api/auth/refresh"), "access_token")

    def logout(self) -> Said:
        return said(self.http.post("/api/auth/logout"))


# Spring with jjwt


_SPRING_SECRET: Final = base64.b64encode(b"a key of thirty-two bytes or more").decode()


def _spring_token() -> str:
    return _hs({"sub": "alice", **_times()}, base64.b64decode(_SPRING_SECRET))


def _spring_login(_: Mapping[str, Any]) -> Response:
    refresh = str(uuid.uuid4())
    user = {"id": 1, "username": "alice", "email": "alice@example.org", "roles": ["ROLE_USER"]}
    return JSONResponse({"token": _spring_token(), "type": "Bearer", "refreshToken": refresh, **user})


def _spring_refresh(given: Mapping[str, Any]) -> Response:
    answer = {"accessToken": _spring_token(), "refreshToken": given["refreshToken"], "tokenType": "Bearer"}
    return JSONResponse(answer)


class Spring(_Asking):
    def sign_in(self) -> Said:
        credentials = {"username": "alice", "password": "wonderland-1"}
        return self.keep(self.http.post("/api/auth/signin", json=credentials), "token", "refreshToken")

    def refresh(self) -> Said:
        body = {"refreshToken": self.refresh_token}
        return self.keep(self.http.post("/api/auth/refreshtoken", json=body), "accessToken", "refreshToken")

    def logout(self) -> Said:
        return said(self.http.post("/api/auth/signout"))


def _good(_: Mapping[str, Any]) -> Response:
    return JSONResponse({"message": "signed out"})


def _recipe(name: str, page: str, block: str, device: type[Device], *routes: Route, **options: Any) -> Recipe:
    return Recipe(name, page, block, lambda directory: _recording(routes, directory), device, **options)


JTI_MATCHER: Final = _recipe(
    "Rails with devise-jwt and JTIMatcher",
    "rails.md",
    "devise.env",
    Rails,
    _route("/users/sign_in", partial(_devise, jti=str(uuid.uuid4()))),
    _route("/users/sign_out", _good, "DELETE"),
    apart=True,
)
RECORDED: Final[Sequence[Recipe]] = (
    _recipe(
        "Strapi",
        "strapi.md",
        "strapi.env",
        Strapi,
        _route("/api/auth/local", _strapi_login),
        apart=True,
        secret=_STRAPI_SECRET,
    ),
    _recipe(
        "Strapi with sessions",
        "strapi.md",
        "sessions.env",
        StrapiSessions,
        _route("/api/auth/local", _strapi_session),
        _route("/api/auth/refresh", _strapi_session),
        _route("/api/auth/logout", _good),
        secret=_STRAPI_SECRET,
    ),
    _recipe("Keycloak", "keycloak.md", "keycloak.env", Keycloak, live_settings=_at_keys),
    _recipe(
        "Auth0", "auth0.md", "auth0.env", Auth0, _route("/oauth/token", _auth0), apart=True, live_settings=_at_keys
    ),
    _recipe(
        "Supabase",
        "supabase.md",
        "supabase.env",
        Supabase,
        _route("/auth/v1/token", _supabase),
        _route("/auth/v1/logout", lambda _: Response(status_code=204)),
        live_settings=_at_keys,
    ),
    _recipe(
        "Rails with devise-jwt",
        "rails.md",
        "devise.env",
        Rails,
        _route("/users/sign_in", _devise),
        _route("/users/sign_out", _good, "DELETE"),
    ),
    _recipe(
        "Laravel with jwt-auth",
        "laravel.md",
        "jwt-auth.env",
        LaravelJwtAuth,
        _route("/api/auth/login", _jwt_auth),
        _route("/api/auth/refresh", _jwt_auth),
        _route("/api/auth/logout", _good),
    ),
    _recipe(
        "Laravel Passport",
        "laravel.md",
        "passport.env",
        LaravelPassport,
        _route("/oauth/token", _passport),
        live_settings=_public_key,
    ),
    _recipe(
        "Spring with jjwt",
        "spring.md",
        "jjwt.env",
        Spring,
        _route("/api/auth/signin", _spring_login),
        _route("/api/auth/refreshtoken", _spring_refresh),
        _route("/api/auth/signout", _good),
        apart=True,
        secret=f"base64:{_SPRING_SECRET}",
    ),
)
