"""The request on whose behalf the application calls a service, and its arguments, in terms of the engine."""

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

_NO_CLIENT = Client(ip_address="", user_agent="")


def scope_of(request: Any) -> Scope:
    """Return the ASGI scope of a Starlette or FastAPI `Request` or `WebSocket`; a scope is returned as it is."""
    return request if isinstance(request, MutableMapping) and "type" in request else request.scope


def engine_of(request: Any) -> Engine:
    """Return the engine of the middleware in front. Raises RuntimeError if there is none."""
    engine = scope_of(request).get(ENGINE)
    if engine is None:
        raise RuntimeError("GatekeeperMiddleware does not stand in front of this application")
    assert isinstance(engine, Engine)  # noqa: S101 - only the middleware sets it
    return engine


def user_id(user: Any) -> str:
    """Return the id of `user`: an object with `id`, a mapping with `"id"`, or the id itself. Raises ValueError for an
    id that no user can have."""
    value = user.get("id") if isinstance(user, Mapping) else getattr(user, "id", user)
    try:
        return parse_user_id(str(value) if isinstance(value, uuid.UUID) else value)
    except TokenRejected as rejected:
        raise ValueError(f"no user id: {rejected.why}") from None


def user_id_or_none(user: Any) -> str | None:
    """Return the same, or None for an id that no user can have, and which therefore has no sessions."""
    try:
        return user_id(user)
    except ValueError:
        return None


def roles_of(user: Any) -> list[str]:
    """Return the roles of a user object or mapping. They may be a sequence, or one string separated by spaces."""
    roles = user.get("roles") if isinstance(user, Mapping) else getattr(user, "roles", None)
    if isinstance(roles, str):
        return roles.split()
    return [str(role.value if isinstance(role, Enum) else role) for role in roles or ()]


class ServiceContext:
    """The request on whose behalf a service works, or None if the application calls it outside of a request."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self.services = engine.services
        self._scope = None if request is None else scope_of(request)

    def __repr__(self) -> str:
        caller = "the application" if self._scope is None else "a request"
        return f"<ServiceContext [{caller}] {self.services.issued!r}>"

    @cached_property
    def _incoming(self) -> IncomingRequest | None:
        return None if self._scope is None else read(self._scope, self.services.rules.trusted)

    @property
    def client(self) -> Client:
        """The client of the request; without a request, one with no address and no user agent."""
        return _NO_CLIENT if self._incoming is None else self._incoming.client

    @cached_property
    def request_id(self) -> str:
        return str(uuid.uuid4()) if self._incoming is None else self._incoming.request_id

    @cached_property
    def manager(self) -> Manager:
        """The session manager, with the client of the request as the actor of its audit events."""
        return self.services.manager.by(Actor.of(self.client, None))

    def language(self, asked: str | None = None) -> str:
        """Return the language `asked` if it is supported, else that of the request, else the configured one."""
        supported = messages.supported_language(asked) if asked is not None else None
        header = "" if self._incoming is None else self._incoming.language_header
        return supported or messages.preferred_language(header, self.services.language)

    def sign_in_request(self, *, refresh_token: str | None = None) -> SignInRequest:
        """Return the request in the form that logins and refreshes take."""
        incoming, address = self._incoming, None
        facts = RequestFacts(headers=(), query=b"", websocket=False, client=_NO_CLIENT)
        if incoming is not None:
            facts = self.services.rules.facts(incoming, own=True)
            address = self.services.rules.address_of(incoming)
        sent = Credentials(refresh_token=refresh_token)
        return SignInRequest(facts=facts, sent=sent, address=address, request_id=self.request_id)

    @contextmanager
    def errors_in(self, language: str) -> Iterator[None]:
        """Turn a failure of the store or of the keys in the block into `ServiceUnavailable`, worded in `language`."""
        try:
            yield
        except GatekeeperError as error:
            self.services.telemetry.failed(error)
            raise unavailable(error, language) from error
