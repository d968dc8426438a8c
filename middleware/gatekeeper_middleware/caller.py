"""Who asks the services for something: the request behind, where there is one, in the engine's terms."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from typing import Any

from gatekeeper import messages
from gatekeeper.auth.requests import RequestFacts, SignInRequest
from gatekeeper.errors import GatekeeperError, TokenRejected
from gatekeeper.http.types import Scope
from gatekeeper.models import Client
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.manager import Manager
from gatekeeper.tokens.claims import parse_user_id
from gatekeeper.tokens.credentials import Credentials
from gatekeeper.web.engine import Engine
from gatekeeper.web.request import ENGINE, IncomingRequest, read
from gatekeeper_middleware.faults import unavailable

_NOBODY = Client(ip_address="", user_agent="")


def scope_of(request: Any) -> Scope:
    """The ASGI scope of a Starlette or FastAPI `Request` or `WebSocket`, or of a scope."""
    return request if isinstance(request, MutableMapping) and "type" in request else request.scope


def engine_of(request: Any) -> Engine:
    """The engine of the gate in front. Raises RuntimeError where there is none."""
    engine = scope_of(request).get(ENGINE)
    if engine is None:
        raise RuntimeError("GatekeeperMiddleware does not stand in front of this application")
    assert isinstance(engine, Engine)  # noqa: S101 - nobody else writes there
    return engine


def user_id(user: Any) -> str:
    """The id of a user: of an object with `id`, of a mapping with `"id"`, or itself. Raises ValueError for what is
    none."""
    value = user.get("id") if isinstance(user, Mapping) else getattr(user, "id", user)
    try:
        return parse_user_id(str(value) if isinstance(value, uuid.UUID) else value)
    except TokenRejected as rejected:
        raise ValueError(f"no user id: {rejected.why}") from None


def known_id(user: Any) -> str | None:
    """The same; None for what is none, and so has no session."""
    try:
        return user_id(user)
    except ValueError:
        return None


def roles_of(user: Any) -> list[str]:
    """The roles that a user object or mapping has, if it has any."""
    roles = user.get("roles") if isinstance(user, Mapping) else getattr(user, "roles", None)
    if isinstance(roles, str):
        return roles.split()
    return [str(role.value if isinstance(role, Enum) else role) for role in roles or ()]


class Caller:
    """One request that uses the services; without a request, the application itself."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self.services = engine.services
        self._scope = None if request is None else scope_of(request)

    def __repr__(self) -> str:
        return f"<Caller [{'a request' if self._scope is not None else 'the application'}] {self.services.issued!r}>"

    @cached_property
    def _incoming(self) -> IncomingRequest | None:
        return None if self._scope is None else read(self._scope, self.services.rules.trusted)

    @property
    def client(self) -> Client:
        """Who is at the other end; without address and agent where nobody is."""
        return _NOBODY if self._incoming is None else self._incoming.client

    @cached_property
    def request_id(self) -> str:
        return str(uuid.uuid4()) if self._incoming is None else self._incoming.request_id

    @cached_property
    def manager(self) -> Manager:
        """The sessions, for what this request does."""
        return self.services.manager.by(Actor.of(self.client, None))

    def language(self, asked: str | None = None) -> str:
        """The language that was asked for, as far as it is known, else that of the request, else the configured one."""
        known = messages.supported_language(asked) if asked is not None else None
        header = "" if self._incoming is None else self._incoming.language_header
        return known or messages.preferred_language(header, self.services.language)

    def sign_in_request(self, *, refresh_token: str | None = None) -> SignInRequest:
        """The request, as logins and refreshes are asked for."""
        incoming, address = self._incoming, None
        facts = RequestFacts(headers=(), query=b"", websocket=False, client=_NOBODY)
        if incoming is not None:
            facts = self.services.rules.facts(incoming, own=True)
            address = self.services.rules.address_of(incoming)
        sent = Credentials(refresh_token=refresh_token)
        return SignInRequest(facts=facts, sent=sent, address=address, request_id=self.request_id)

    @contextmanager
    def errors_in(self, language: str) -> Iterator[None]:
        """Around what asks the store or the keys: raises `ServiceUnavailable` where they do not answer."""
        try:
            yield
        except GatekeeperError as error:
            self.services.telemetry.failed(error)
            raise unavailable(error, language) from error
