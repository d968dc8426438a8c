"""Sessions where tokens are handed out: logins, refreshes, and refresh tokens of Gatekeeper's own.

A refresh token is known by its digest alone, here and in the store: who reads the store can use none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec

from gatekeeper.models import Claims, Client, EndReason
from gatekeeper.sessions.events import SYSTEM, Actor
from gatekeeper.sessions.keys import ScriptRunner, microseconds, new_id
from gatekeeper.sessions.scripts import load

LOGIN: Final = load("audit", "common", "upkeep", "opening", "arguments", "login", durable=True)
REFRESHED: Final = load("audit", "common", "upkeep", "opening", "arguments", "refreshed", durable=True)
LINK: Final = load("audit", "common", "upkeep", "link")
ROTATE: Final = load("audit", "common", "upkeep", "opening", "rotate", durable=True)


class RefreshToken(msgspec.Struct, frozen=True):
    """A refresh token as the store knows it: the digest, and when it expires (seconds), if anybody tells."""

    digest: str
    expires_at: float | None = None


class SignInResult(msgspec.Struct, frozen=True):
    """What became of new tokens.

    `opened`: they have a session of their own; `touched`: they belong to one that was there; `ended`: to one that is
    over; `full`: there is no room; `unknown`: they may not open a session. `expires_at` is the session's, in seconds.
    """

    outcome: Literal["opened", "touched", "ended", "full", "unknown"]
    session_id: int
    end_reason: EndReason | None
    evicted: int
    expires_at: float

    @property
    def is_live(self) -> bool:
        return self.outcome in {"opened", "touched"}


class TokenLookup(msgspec.Struct, frozen=True):
    """Which session tokens name: `live`, `ended`, `unknown` (no session; tokens issued until `not_before`, in seconds,
    may not open one), or `crowded` (live, with more tokens than it may have). `is_newest`: the refresh token asked
    about is the one that the session was given last."""

    outcome: Literal["live", "ended", "unknown", "crowded"]
    session_id: int
    end_reason: EndReason | None
    expires_at: float
    not_before: float
    is_newest: bool


class Rotation(msgspec.Struct, frozen=True):
    """What a refresh token of Gatekeeper's own is: `current` (to be rotated), `again` (rotated within the window; its
    `sealed` successors are given once more), `reused` (its session has ended by that), `ended`, `unknown`."""

    outcome: Literal["current", "rotated", "again", "reused", "ended", "unknown"]
    session_id: int = 0
    end_reason: EndReason | None = None
    reference: str = ""
    expires_at: float = 0.0
    claims: str = ""
    sealed: bytes = b""


class Successor(msgspec.Struct, frozen=True):
    """What a refresh token makes way for: the next one's digest, its access token's `jti` and expiry (seconds), and
    both tokens sealed."""

    digest: str
    jti: str
    expires_at: float
    sealed: bytes


class SignIns:
    """Logins and refreshes in the store. Every method raises `StoreUnavailable`."""

    def __init__(self, runner: ScriptRunner, *, reuse_window_seconds: float = 0.0) -> None:
        self._runner = runner
        self._window = microseconds(reuse_window_seconds)
        self._over = (runner.idle, runner.ended_ttl)
        self._rules = (runner.idle, runner.ttl, runner.ended_ttl, runner.limit, runner.policy, runner.unknown)

    def __repr__(self) -> str:
        return f"<SignIns {self._runner!r}>"

    async def user_of(self, digest: str) -> str | None:
        """Whose refresh token it is, as far as the index knows."""
        return await self._runner.user_of_refresh_token(digest)

    async def user_of_sid(self, sid: str) -> str | None:
        """Whose sign-in at a provider it is, as far as the index knows."""
        return await self._runner.user_of_sid(sid)

    async def log_in(
        self,
        claims: Claims,
        client: Client,
        *,
        exempt: bool,
        refresh: RefreshToken | None,
        presented: str | None = None,
        kept_claims: str = "",
        user_name: str = "",
    ) -> SignInResult:
        """Opens a session for tokens that are about to be handed out. That of `presented`, the reference of a token
        that came with the login, ends; `kept_claims` are remembered for tokens to come. `user_name`
        is what was typed, for the audit trail."""
        arguments = self._arguments(claims, client, exempt, refresh, "password")
        signed_in = await self._runner.run_audited(
            LOGIN,
            claims.user,
            _signed_in,
            *arguments,
            presented or "",
            kept_claims,
            actor=Actor.of(client, claims.user, user_name=user_name),
            indexes=self._indexes(claims, refresh),
        )
        if signed_in.is_live and presented is not None and presented != claims.reference:
            self._runner.revoked.add_ended_reference(claims.user, presented, EndReason.LOGGED_OUT)
        return self._cache(claims, signed_in)

    def _cache(self, claims: Claims, signed_in: SignInResult) -> SignInResult:
        if signed_in.is_live:
            self._runner.revoked.add_live(claims.user, claims.reference, signed_in.session_id)
        return signed_in

    async def refresh(
        self, claims: Claims, client: Client, *, exempt: bool, refresh: RefreshToken | None, linked: int | None
    ) -> SignInResult:
        """Gives new tokens to the session `linked`; without one, to that of their own, or to a new one."""
        arguments = self._arguments(claims, client, exempt, refresh, "refresh")
        signed_in = await self._runner.run_audited(
            REFRESHED,
            claims.user,
            _signed_in,
            *arguments,
            linked or 0,
            self._runner.epoch.adopt_not_before,
            actor=Actor.of(client, claims.user),
            indexes=self._indexes(claims, refresh),
        )
        return self._cache(claims, signed_in)

    async def lookup(self, user: str, *, digest: str | None = None, claims: Claims | None = None) -> TokenLookup:
        """The session that a refresh token or an access token of `user` names. Moves nothing."""
        token: tuple[str, int, int] = ("", 0, 0)
        if claims is not None:
            issued_at = microseconds(claims.issued_at or 0)
            token = (claims.reference, self._runner.token_expires_at(claims), issued_at)
        linked = await self._runner.run(LINK, user, _linked, *self._over, digest or "", *token)
        if linked.outcome == "unknown":
            lost = self._runner.epoch.adopt_not_before / 1e6
            return msgspec.structs.replace(linked, not_before=max(linked.not_before, lost))
        return linked

    async def lookup_refresh_token(self, user: str, digest: str, *, actor: Actor = SYSTEM) -> Rotation:
        """What a refresh token is. Asking is enough to end a session whose token is used again."""
        return await self._rotate(user, digest, actor=actor)

    async def rotate(self, user: str, digest: str, successor: Successor, *, actor: Actor = SYSTEM) -> Rotation:
        """Replaces a current refresh token; `again` where somebody else was faster."""
        await self._runner.index_refresh_token(successor.digest, user)
        next_expires_at = self._runner.expires_at(successor.expires_at)
        new = (successor.digest, successor.jti, next_expires_at, successor.sealed, self._window)
        return await self._rotate(user, digest, *new, actor=actor)

    async def _rotate(self, user: str, digest: str, *successor: Any, actor: Actor) -> Rotation:
        pairs = self._runner.pairs_key(user)
        arguments = (*self._over, digest, *successor)
        rotation = await self._runner.run_audited(ROTATE, user, _rotation, *arguments, actor=actor, extra_key=pairs)
        if rotation.outcome == "reused":
            self._runner.revoked.add_ended(user, rotation.session_id, EndReason.REFRESH_REUSED)
        return rotation

    def _arguments(
        self, claims: Claims, client: Client, exempt: bool, refresh: RefreshToken | None, login_method: str
    ) -> tuple[Any, ...]:
        """ARGV as `arguments.lua` reads it."""
        return (
            *self._rules,
            new_id(),
            claims.reference,
            claims.jti or "",
            microseconds(claims.issued_at or 0),
            self._runner.token_expires_at(claims),
            int(exempt),
            refresh.digest if refresh else "",
            microseconds(refresh.expires_at or 0) if refresh else 0,
            login_method,
            *self._runner.client_details(client),
        )

    def _indexes(self, claims: Claims, refresh: RefreshToken | None) -> list[Awaitable[None]]:
        if refresh is None:
            return self._runner.indexes(claims)
        return self._runner.indexes(claims, refresh=refresh.digest, refresh_expires_at=refresh.expires_at)


def _word(raw: bytes, *known: str) -> Any:
    """A word of the scripts. Raises `ValueError` for one that is not theirs."""
    word = raw.decode()
    if word not in known:
        raise ValueError(word)
    return word


def _reason(text: bytes) -> EndReason | None:
    return EndReason(text.decode()) if text else None


def _signed_in(reply: list[Any]) -> SignInResult:
    _, word, session_id, reason, evicted, expires_at = reply
    told = _word(word, "opened", "touched", "ended", "full", "unknown")
    return SignInResult(told, int(session_id), _reason(reason), int(evicted), int(expires_at) / 1e6)


def _linked(reply: list[Any]) -> TokenLookup:
    _, word, session_id, reason, instant, newest = reply
    at = int(instant) / 1e6
    known = word != b"unknown"
    told = _word(word, "live", "ended", "unknown", "crowded")
    return TokenLookup(told, int(session_id), _reason(reason), at if known else 0.0, 0.0 if known else at, newest == 1)


def _rotation(reply: list[Any]) -> Rotation:
    _, word, *rest = reply
    return _ROTATIONS[word.decode()](*rest)


_ROTATIONS: Final[dict[str, Callable[..., Rotation]]] = {
    "current": lambda session_id, reference, expires_at, claims: Rotation(
        "current",
        int(session_id),
        reference=reference.decode(),
        expires_at=int(expires_at) / 1e6,
        claims=claims.decode(),
    ),
    "rotated": lambda session_id: Rotation("rotated", int(session_id)),
    "again": lambda session_id, sealed: Rotation("again", int(session_id), sealed=sealed),
    "reused": lambda session_id: Rotation("reused", int(session_id), EndReason.REFRESH_REUSED),
    "ended": lambda session_id, reason: Rotation("ended", int(session_id), _reason(reason)),
    "unknown": lambda: Rotation("unknown"),
}
