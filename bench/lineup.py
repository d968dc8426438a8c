"""The peers: what each is, how it is started, and what it lacks."""

from __future__ import annotations

import base64
import getpass
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import tools

# Of every peer: idle connections are to last until their memory has been measured.
KEEPALIVE_SECONDS: Final = 300


@dataclass(frozen=True)
class Place:
    """The place of one running peer: its port, the ports of backend and store, its scratch folder, the HMAC secret."""

    port: int
    upstream_port: int
    store_port: int
    directory: Path
    secret: str
    workers: int = 1

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    @property
    def store(self) -> str:
        return f"redis://127.0.0.1:{self.store_port}/0"


@dataclass(frozen=True)
class Peer:
    """`checks` says what it looks at on every request; `missing` why it cannot run here, empty if it can."""

    name: str
    title: str
    checks: str
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], dict[str, str]] = field(default=lambda _: {})
    templates: tuple[str, ...] = ()
    websocket: bool = True
    missing: Callable[[], str] = lambda: ""
    version: tuple[str, ...] = ()

    def render(self, place: Place) -> None:
        """Its configuration files, filled in, in the scratch folder."""
        for template in self.templates:
            fill(tools.PEERS / self.name / template, place)


def fill(template: Path, place: Place) -> None:
    """Writes `template` into the scratch folder, with each `@name@` replaced."""
    secret = place.secret.encode()
    values = {
        "port": str(place.port),
        "upstream_port": str(place.upstream_port),
        "store_port": str(place.store_port),
        "directory": str(place.directory),
        "here": str(template.parent),
        "touch": str(tools.PEERS / "touch.lua"),
        "secret": place.secret,
        "secret_base64url": base64.urlsafe_b64encode(secret).decode().rstrip("="),
        "user": getpass.getuser(),
        "keepalive_seconds": str(KEEPALIVE_SECONDS),
    }
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    place.directory.mkdir(parents=True, exist_ok=True)
    (place.directory / template.name).write_text(text)


def _environment(place: Place) -> dict[str, str]:
    return {
        "BENCH_PORT": str(place.port),
        "BENCH_UPSTREAM": place.upstream,
        "BENCH_STORE": place.store,
        "BENCH_SECRET": place.secret,
        "BENCH_TOUCH": str(tools.PEERS / "touch.lua"),
        "BENCH_KEEPALIVE_SECONDS": str(KEEPALIVE_SECONDS),
    }


def _gatekeeper_environment(place: Place) -> dict[str, str]:
    return {
        "GATEKEEPER_LISTEN": f"127.0.0.1:{place.port}",
        "GATEKEEPER_OPS_LISTEN": "off",
        "GATEKEEPER_UPSTREAM_URL": place.upstream,
        "GATEKEEPER_REDIS_URL": place.store,
        "GATEKEEPER_JWT_SECRET": place.secret,
        "GATEKEEPER_WORKERS": str(place.workers),
        "GATEKEEPER_KEEPALIVE_TIMEOUT": f"{KEEPALIVE_SECONDS}s",
    }


def _venv(command: str) -> str:
    return str(tools.VENV / "bin" / command)


def _naive(place: Place) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(place.port), "--backlog", "4096"]
    listen += ["--timeout-keep-alive", str(KEEPALIVE_SECONDS)]
    return [_venv("uvicorn"), "--app-dir", str(tools.PEERS / "naive"), *listen, "app:app"]


def _nginx(place: Place) -> list[str]:
    return ["nginx", "-p", str(place.directory), "-c", str(place.directory / "nginx.conf"), "-e", "stderr"]


def _envoy(place: Place) -> list[str]:
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [_venv("envoy"), *flags, "-c", str(place.directory / "envoy.yaml")]


PEERS: Final = (
    Peer("direct", "the backend alone", "nothing", command=lambda _: []),
    Peer(
        "gatekeeper",
        "Gatekeeper",
        "token, session; access log",
        command=lambda _: [tools.python(), "-c", "from gatekeeper.cli import main; main()", "serve"],
        environment=_gatekeeper_environment,
    ),
    Peer(
        "naive",
        "Starlette BaseHTTPMiddleware, PyJWT, redis-py, httpx",
        "token, session; access log",
        command=_naive,
        environment=_environment,
        websocket=False,
        missing=lambda: tools.is_missing_in_venv("uvicorn"),
        version=(str(tools.VENV / "bin/uvicorn"), "--version"),
    ),
    Peer(
        "fastify",
        "fastify, @fastify/http-proxy, fast-jwt, ioredis",
        "token, session",
        command=lambda _: [shutil.which("node") or "node", str(tools.FASTIFY / "server.cjs")],
        environment=_environment,
        missing=tools.node_is_missing,
        version=("node", "--version"),
    ),
    Peer(
        "nginx",
        "nginx, Lua, Redis",
        "token, session; access log",
        command=_nginx,
        templates=("nginx.conf",),
        missing=tools.nginx_is_missing,
        version=("nginx", "-v"),
    ),
    Peer(
        "envoy",
        "Envoy, jwt_authn",
        "token",
        command=_envoy,
        templates=("envoy.yaml",),
        missing=lambda: tools.is_missing_in_venv("envoy"),
        version=(str(tools.VENV / "bin/envoy"), "--version"),
    ),
    Peer(
        "traefik",
        "Traefik",
        "nothing",
        command=lambda place: [_venv("traefik"), f"--configFile={place.directory / 'traefik.yaml'}"],
        templates=("traefik.yaml", "routes.yaml"),
        missing=lambda: tools.is_missing_in_venv("traefik"),
        version=(str(tools.VENV / "bin/traefik"), "version"),
    ),
)
BY_NAME: Final = {peer.name: peer for peer in PEERS}
