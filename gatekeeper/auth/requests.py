"""Requests as the gate and the sign-ins see them: values without behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import CheckResult, Client, Problem
from gatekeeper.tokens.credentials import Credentials


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that a verdict depends on: headers as received, the query (for tokens of WebSockets and event streams,
    `event_stream`), the client.
    `cookie_allowed` is False where a cookie may have been sent at another site's request (`http/origins.py`);
    `checked` is the store's reply where it was asked before."""

    headers: Sequence[tuple[bytes, bytes]]
    query: bytes
    websocket: bool
    client: Client
    event_stream: bool = False
    cookie_allowed: bool = True
    checked: CheckResult | StoreUnavailable | None = None


class SignInRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a login, refresh or logout path. `sent` are the credentials in its body and cookies,
    `user_names` all names by which its login may count, `token_like` every text in it that may be a token;
    `address` is the client's, None where several clients may share it, `language` that of the body."""

    facts: RequestFacts
    sent: Credentials
    address: str | None
    request_id: str
    user_names: Sequence[str] = ()
    token_like: Sequence[str] = ()
    language: str | None = None

    @property
    def client(self) -> Client:
        return self.facts.client


class SignInResponse(msgspec.Struct, frozen=True):
    """The backend's response: its status and the tokens in it."""

    status: int
    given: Credentials


class SessionOwner(msgspec.Struct):
    """The user and the session of a request, for the access log; filled while the request is served."""

    user: str | None = None
    session_id: int | None = None


class ObservedSignIn(Protocol):
    """One sign-in request at the backend, followed from before it is forwarded until after its response."""

    owner: SessionOwner

    async def before(self) -> Problem | None: ...

    async def after(self, response: SignInResponse) -> Problem | None: ...

    def under_way(self) -> AbstractContextManager[None]:
        """A context around the time that the request spends at the backend."""
        ...


class IssuedTokens(msgspec.Struct, frozen=True):
    """The tokens that a login or a refresh hands out; `expires_in` and `session_seconds` in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    session_seconds: int
