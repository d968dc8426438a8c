"""Requests as the gate and the sign-ins see them: values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import CheckResult, Claims, Client, EndReason, Problem
from gatekeeper.tokens.credentials import Credentials
from gatekeeper.tokens.response_tokens import GivenTokens, looks_like_jwt
from gatekeeper.tokens.token_places import FoundText


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


class Standing(msgspec.Struct, frozen=True):
    """The state of the session of a token. `is_over`: it has ended, for `end_reason` if there was one; a token that
    was never seen is over only where one issued at its time opens no session. Tokens of one session have one
    `session`."""

    is_over: bool
    end_reason: EndReason | None
    session: tuple[str, str | int]


class StandingLookup(Protocol):
    """Looks up the sessions of tokens, all at once (`standing.Standings`)."""

    async def of(self, tokens: Sequence[Claims]) -> list[Standing]: ...


class SignInRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a login, refresh or logout path, received at `received_at` (seconds since 1970).

    `sent` are the credentials in its body and cookies, `user_names` all names by which its login may count.
    `token_like` is every text in it that may be a token; of a login, `carried` finds them, or None where they cannot be
    found. `presented` are those in the body, the query and `Authorization` of a login that holds neither a user name
    nor another proof of a user. `learnable` are those that may be the refresh token although no name says so, each with
    the name of its member or cookie. `refreshes`: it is a refresh, whatever its path is. `address` is the client's,
    None where several clients may share it, `language` that of the body.
    """

    facts: RequestFacts
    sent: Credentials
    address: str | None
    request_id: str
    received_at: float = 0.0
    user_names: Sequence[str] = ()
    token_like: Sequence[str] = ()
    carried: Callable[[], Sequence[str] | None] | None = None
    presented: Sequence[str] = ()
    learnable: Sequence[FoundText] = ()
    refreshes: bool = False
    language: str | None = None

    @property
    def client(self) -> Client:
        return self.facts.client

    def may_carry(self, token: str) -> bool:
        """True unless the request is known not to hold this JWT, whatever its signature is written like."""
        texts = self.token_like if self.carried is None else self.carried()
        if texts is None:
            return True
        payload = token.split(".")[1] if looks_like_jwt(token) else token
        return any(payload in text.split(".") for text in texts)


class SignInResponse(msgspec.Struct, frozen=True):
    """The backend's response: its status and the texts in it that may be tokens."""

    status: int
    given: GivenTokens


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
