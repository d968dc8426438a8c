"""Backends from PyPI and npm that run as processes, each with what its clients do."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import httpx

from tests.recipes.node import SdkDevice, node_process
from tests.recipes.walk import AT_GATEKEEPER, SECRET, BearerDevice, Device, Recipe, Said, said
from tests.servers import fastapi_users_process, process

_PYTHON: Final = Path(__file__).parent / "python"
_ALICE: Final = {"username": "alice", "password": "wonderland-1"}
_ALICE_MAIL: Final = {"email": "alice@example.org", "password": "wonderland-1"}


@contextmanager
def _gunicorn(application: str, directory: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "4"]
    command += ["--no-control-socket", "--preload", "--chdir", str(_PYTHON), application]
    environment = {"SIGNING_KEY": SECRET, "DATA_DIRECTORY": str(directory)}
    with process(command, environment, listening=r"Listening at: (http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextmanager
def _uvicorn(application: str, _: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "0"]
    command += ["--app-dir", str(_PYTHON), application]
    with process(command, {"SIGNING_KEY": SECRET}, listening=r"running on (http://127\.0\.0\.1:\d+)") as url:
        yield url


# Python


class SimpleJwt(BearerDevice):
    base: ClassVar[str] = "/api/token"
    me: ClassVar[str] = "/api/me"

    def sign_in(self) -> Said:
        return self.keep(self.http.post(f"{self.base}/", json=_ALICE), "access", "refresh")

    def ask(self) -> Said:
        return said(self.http.get(self.me))

    def refresh(self) -> Said:
        answer = self.http.post(f"{self.base}/refresh/", json={"refresh": self.refresh_token})
        return self.keep(answer, "access", "refresh")

    def logout(self) -> Said:
        return said(self.http.post(f"{self.base}/blacklist/", json={"refresh": self.refresh_token}))


class Djoser(SimpleJwt):
    scheme = "JWT"
    at_logout = AT_GATEKEEPER
    me = "/auth/users/me/"

    def sign_in(self) -> Said:
        return self.keep(self.http.post("/auth/jwt/create/", json=_ALICE), "access", "refresh")

    def refresh(self) -> Said:
        answer = self.http.post("/auth/jwt/refresh/", json={"refresh": self.refresh_token})
        return self.keep(answer, "access", "refresh")

    def logout(self) -> Said:
        return Device.logout(self)


class Ninja(SimpleJwt):
    at_logout = AT_GATEKEEPER
    me = "/api/whoami"

    def sign_in(self) -> Said:
        return self.keep(self.http.post("/api/token/pair", json=_ALICE), "access", "refresh")

    def refresh(self) -> Said:
        answer = self.http.post("/api/token/refresh", json={"refresh": self.refresh_token})
        return self.keep(answer, "access", "refresh")

    def logout(self) -> Said:
        return Device.logout(self)


class Flask(Device):
    """A browser's script: cookies, and the CSRF value of the cookie that is read in a header."""

    def _csrf(self, cookie: str) -> dict[str, str]:
        value = next((each.value for each in self.http.cookies.jar if each.name == cookie), None)
        return {"X-CSRF-TOKEN": value or ""}

    def sign_in(self) -> Said:
        return said(self.http.post("/login", json=_ALICE))

    def ask(self) -> Said:
        return said(self.http.post("/protected", headers=self._csrf("csrf_access_token")))

    def refresh(self) -> Said:
        return said(self.http.post("/refresh", headers=self._csrf("csrf_refresh_token")))

    def logout(self) -> Said:
        return said(self.http.post("/logout"))


class FastApiUsers(BearerDevice):
    user = "carol@example.org"
    refreshes = False

    def sign_in(self) -> Said:
        form = {"username": self.user, "password": "wonderland-1"}
        return self.keep(self.http.post("/auth/login", data=form), "access_token")

    def ask(self) -> Said:
        return said(self.http.get("/users/me"))

    def logout(self) -> Said:
        return said(self.http.post("/auth/logout"))


class FastApiTemplate(BearerDevice):
    user = "5f0c8e6e-3f53-4d0c-9d0f-0a4d0b6f6b5e"
    refreshes = False
    at_logout = AT_GATEKEEPER

    def sign_in(self) -> Said:
        form = {"username": "alice@example.org", "password": "wonderland-1"}
        return self.keep(self.http.post("/api/v1/login/access-token", data=form), "access_token")

    def ask(self) -> Said:
        return said(self.http.get("/api/v1/users/me"))


PYTHON: Final[Sequence[Recipe]] = (
    Recipe("Django with Simple JWT", "django.md", "simplejwt.env", partial(_gunicorn, "django_recipes"), SimpleJwt),
    Recipe("Django with djoser", "django.md", "djoser.env", partial(_gunicorn, "django_recipes"), Djoser),
    Recipe("Django with Ninja JWT", "django.md", "ninja.env", partial(_gunicorn, "django_recipes"), Ninja),
    Recipe("Flask-JWT-Extended", "flask.md", "flask.env", partial(_gunicorn, "flask_recipe:app"), Flask),
    Recipe(
        "FastAPI Users",
        "fastapi.md",
        "fastapi-users.env",
        lambda directory: fastapi_users_process(directory, SECRET),
        FastApiUsers,
        apart=True,
    ),
    Recipe(
        "FastAPI's full stack template",
        "fastapi.md",
        "template.env",
        partial(_uvicorn, "fastapi_template_recipe:app"),
        FastApiTemplate,
        apart=True,
    ),
)


# Node


class Nest(BearerDevice):
    refusal = '"statusCode":401'
    refreshes = False
    at_logout = AT_GATEKEEPER

    def sign_in(self) -> Said:
        return self.keep(self.http.post("/auth/login", json=_ALICE), "access_token")

    def ask(self) -> Said:
        return said(self.http.get("/auth/profile"))


class Express(BearerDevice):
    """The refresh token is a cookie named `jwt`."""

    def sign_in(self) -> Said:
        return self.keep(self.http.post("/auth", json=_ALICE), "accessToken")

    def ask(self) -> Said:
        return said(self.http.get("/profile"))

    def refresh(self) -> Said:
        return self.keep(self.http.get("/refresh"), "accessToken")

    def logout(self) -> Said:
        return said(self.http.get("/logout"))


class ExpressHeader(Device):
    """The token goes both ways in `x-auth-token`."""

    user = "5b21ca3eeb7f6fbccd471815"
    refreshes = False
    at_logout = AT_GATEKEEPER

    def sign_in(self) -> Said:
        answer = self.http.post("/api/auth", json=_ALICE_MAIL)
        if answer.is_success:
            self.http.headers["x-auth-token"] = answer.headers["x-auth-token"]
        return said(answer)

    def ask(self) -> Said:
        return said(self.http.get("/api/me"))


class Fastify(BearerDevice):
    def sign_in(self) -> Said:
        return self.keep(self.http.post("/login", json=_ALICE), "token")

    def ask(self) -> Said:
        return said(self.http.get("/me"))

    def refresh(self) -> Said:
        return self.keep(self.http.post("/refresh"), "token")

    def logout(self) -> Said:
        return said(self.http.post("/logout"))


class Feathers(SdkDevice):
    """Its own client, which signs in again with the token that it has kept."""

    user = "alice@example.org"
    script = "node/feathers-client.cjs"
    refusal = '"name": "NotAuthenticated"'
    credentials = _ALICE_MAIL


class Directus(SdkDevice):
    user = "alice@example.org"
    script = "directus/client.cjs"
    refusal = '"extensions": {"code": "'
    credentials = _ALICE_MAIL


class DirectusCookies(BearerDevice):
    """A browser's script: the refresh token is in a cookie, the access token is in the answer."""

    user = "alice@example.org"

    def _keep(self, answer: httpx.Response) -> Said:
        if answer.is_success:
            self.bear(answer.json()["data"]["access_token"])
        return said(answer)

    def sign_in(self) -> Said:
        return self._keep(self.http.post("/auth/login", json={**_ALICE_MAIL, "mode": "cookie"}))

    def ask(self) -> Said:
        return said(self.http.get("/users/me?fields=email"))

    def refresh(self) -> Said:
        return self._keep(self.http.post("/auth/refresh", json={"mode": "cookie"}))

    def logout(self) -> Said:
        return said(self.http.post("/auth/logout", json={"mode": "cookie"}))


class DirectusSession(Device):
    """A browser's script: the token itself is in a cookie, and refreshes itself."""

    user = "alice@example.org"

    def sign_in(self) -> Said:
        return said(self.http.post("/auth/login", json={**_ALICE_MAIL, "mode": "session"}))

    def ask(self) -> Said:
        return said(self.http.get("/users/me?fields=email"))

    def refresh(self) -> Said:
        return said(self.http.post("/auth/refresh", json={"mode": "session"}))

    def logout(self) -> Said:
        return said(self.http.post("/auth/logout", json={"mode": "session"}))


DIRECTUS: Final[Sequence[Recipe]] = (
    Recipe(
        "Directus", "directus.md", "directus.env", partial(node_process, "directus/serve.cjs"), Directus, apart=True
    ),
    Recipe(
        "Directus with cookies",
        "directus.md",
        "directus.env",
        partial(node_process, "directus/serve.cjs"),
        DirectusCookies,
        apart=True,
    ),
    Recipe(
        "Directus with session cookies",
        "directus.md",
        "directus.env",
        partial(node_process, "directus/serve.cjs"),
        DirectusSession,
    ),
)
NODE: Final[Sequence[Recipe]] = (
    Recipe("NestJS", "nestjs.md", "nestjs.env", partial(node_process, "node/nest.cjs"), Nest, apart=True),
    Recipe(
        "Express with passport",
        "express.md",
        "passport.env",
        partial(node_process, "node/express.cjs"),
        Express,
        apart=True,
    ),
    Recipe(
        "Express with a header",
        "express.md",
        "header.env",
        partial(node_process, "node/express.cjs"),
        ExpressHeader,
        apart=True,
    ),
    Recipe("Fastify", "fastify.md", "fastify.env", partial(node_process, "node/fastify.cjs"), Fastify, apart=True),
    Recipe("Feathers", "feathers.md", "feathers.env", partial(node_process, "node/feathers.cjs"), Feathers),
)
