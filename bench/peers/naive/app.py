"""Sessions in front of a backend as teams write them: a middleware of the framework, three calls to the store, and an
HTTP client for the hop."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import jwt
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SECRET = os.environ["BENCH_SECRET"]
UPSTREAM = os.environ["BENCH_UPSTREAM"]
IDLE_SECONDS = 1800
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}

store = Redis.from_url(os.environ["BENCH_STORE"], decode_responses=True)
client = httpx.AsyncClient(base_url=UPSTREAM)


class SessionMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, SECRET, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            return JSONResponse({"detail": "Could not validate credentials"}, status_code=401)
        key = f"session:{claims['jti']}"
        session = await store.hgetall(key)
        if session.get("ended") != "0":
            return JSONResponse({"detail": "Session revoked"}, status_code=401)
        await store.hset(key, "last_activity", str(int(time.time())))
        await store.expire(key, IDLE_SECONDS)
        request.state.user = claims["sub"]
        return await call_next(request)


async def forward(request: Request) -> Response:
    headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
    answer = await client.request(
        request.method,
        request.url.path,
        params=request.query_params,
        headers=[*headers, ("x-user-id", request.state.user)],
        content=await request.body(),
    )
    kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
    return Response(answer.content, answer.status_code, kept)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await client.aclose()
    await store.aclose()


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = Starlette(
    routes=[Route("/{path:path}", forward, methods=METHODS)],
    middleware=[Middleware(SessionMiddleware)],
    lifespan=lifespan,
)
