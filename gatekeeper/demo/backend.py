"""The sample legacy backend of `gatekeeper demo`: it signs JWTs at a login and checks only their signature.

It knows no sessions: the demo shows that Gatekeeper adds them without a change to the backend. Use it for nothing else.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import jwt
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USERS: Final = {
    "alice": {"id": 74, "password": "wonderland", "roles": ["user"]},
    "bob": {"id": 75, "password": "builder", "roles": ["user"]},
    "admin": {"id": 1, "password": "letmein", "roles": ["user", "admin"]},
}
TOKEN_SECONDS: Final = 3600
REFRESH_SECONDS: Final = 86_400


class _Login(msgspec.Struct):
    username: str
    password: str


class _Refresh(msgspec.Struct):
    refresh_token: str


class SampleBackend:
    """The application of the sample backend. All its tokens are signed with one HS256 secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/auth/login", self.login, methods=["POST"]),
                Route("/api/v1/auth/login", self.login, methods=["POST"]),
                Route("/auth/refresh", self.refresh, methods=["POST"]),
                Route("/api/v1/auth/refresh", self.refresh, methods=["POST"]),
                Route("/auth/logout", self.logout, methods=["POST"]),
                Route("/api/v1/auth/logout", self.logout, methods=["POST"]),
                Route("/protected", self.protected),
                Route("/api/v1/protected", self.protected),
                Route("/api/v1/auth/profile", self.profile),
                Route("/api/v1/data", self.data, methods=["POST"]),
                Route("/headers", self.headers),
                Route("/events", self.events),
            ]
        )

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def login(self, request: Request) -> Response:
        try:
            login = msgspec.json.decode(await request.body(), type=_Login)
        except msgspec.DecodeError:
            return JSONResponse({"detail": "Send {username, password} as JSON"}, status_code=400)
        user = USERS.get(login.username)
        if user is None or user["password"] != login.password:
            return JSONResponse({"detail": "Incorrect username or password"}, status_code=401)
        return self._tokens(login.username)

    def _tokens(self, name: str) -> Response:
        user, now = USERS[name], int(time.time())
        claims = {"sub": str(user["id"]), "name": name, "iat": now}
        access = {**claims, "roles": user["roles"], "jti": uuid.uuid4().hex, "exp": now + TOKEN_SECONDS}
        refresh = {**claims, "token_type": "refresh", "jti": uuid.uuid4().hex, "exp": now + REFRESH_SECONDS}
        return JSONResponse(
            {
                "access_token": jwt.encode(access, self._secret, algorithm="HS256"),
                "refresh_token": jwt.encode(refresh, self._secret, algorithm="HS256"),
                "token_type": "bearer",
                "expires_in": TOKEN_SECONDS,
            }
        )

    async def refresh(self, request: Request) -> Response:
        try:
            refresh = msgspec.json.decode(await request.body(), type=_Refresh)
            claims = jwt.decode(refresh.refresh_token, self._secret, algorithms=["HS256"])
        except (msgspec.DecodeError, jwt.InvalidTokenError):
            return JSONResponse({"detail": "Invalid refresh token"}, status_code=401)
        if claims.get("token_type") != "refresh":
            return JSONResponse({"detail": "Invalid refresh token"}, status_code=401)
        return self._tokens(claims["name"])

    async def logout(self, _: Request) -> Response:
        """Responds, and changes nothing: the token stays valid for this backend."""
        return JSONResponse({"message": "Goodbye"})

    def _user(self, request: Request) -> dict[str, Any] | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            claims: dict[str, Any] = jwt.decode(token, self._secret, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            return None
        return claims

    async def protected(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            return JSONResponse({"detail": "Not authenticated"}, status_code=401)
        return JSONResponse({"message": f"Hello {user['name']}!"})

    async def profile(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            return JSONResponse({"detail": "Not authenticated"}, status_code=401)
        return JSONResponse({"id": int(user["sub"]), "username": user["name"], "roles": user["roles"]})

    async def data(self, request: Request) -> Response:
        return JSONResponse({"received": len(await request.body())})

    async def headers(self, request: Request) -> Response:
        """Returns the request headers, to show the identity headers that Gatekeeper sets."""
        return JSONResponse({name: value for name, value in request.headers.items() if name != "authorization"})

    async def events(self, _: Request) -> Response:
        async def ticks() -> AsyncIterator[bytes]:
            for number in range(3600):
                yield f"data: tick {number}\n\n".encode()
                await asyncio.sleep(1)

        return StreamingResponse(ticks(), media_type="text/event-stream")
