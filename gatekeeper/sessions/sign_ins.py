"""Sessions where tokens are handed out: logins, refreshes, and refresh tokens that Gatekeeper issues.

A refresh token is known by its digest alone, here and in the store: reading the store yields no usable token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from gatekeeper.identifiers import written
from gatekeeper.models import Claims, Client, EndReason
from gatekeeper.sessions.events import SYSTEM, Actor
from gatekeeper.sessions.keys import microseconds
from gatekeeper.sessions.opening import named_by, packed_string
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.scripts import load

LOGIN: Final = load("audit", "common", "upkeep", "arguments", "opening", "sign_in", "login", durable=True)
REFRESH: Final = load("audit", "common", "upkeep", "arguments", "opening", "sign_in", "refresh", durable=True)
LOOKUP: Final = load("audit", "common", "upkeep", "arguments", "lookup")
RENEW: Final = load("audit", "common", "upkeep", "arguments", "opening", "renew", durable=True)
ROTATE: Final = load("audit", "common", "upkeep", "arguments", "opening", "rotate", durable=True)


# Of a reply as sign_in.lua makes it; login.lua may add two.
_SIGN_IN_FIELDS: Final = 6


class RefreshToken(msgspec.Struct, frozen=True):
    """A refresh token as the store knows it: its digest, and when it expires (seconds; None: unknown). `signed` is the
    digest that also says the signature of a JWT, where that differs."""

    digest: str
    expires_at: float | None = None
    signed: str = ""


class Besides(msgspec.Struct, frozen=True):
    """Tokens that a response hands out besides its newest access token and its refresh token: more access tokens, and
    texts that may be refresh tokens. `presented`: such texts of the request, which no known token linked."""

    more: Sequence[Claims] = ()
    learnt: Sequence[RefreshToken] = ()
    presented: Sequence[RefreshToken] = ()


NOTHING: Final = Besides()


class SignInResult(msgspec.Struct, frozen=True):
    """The result of a login or a refresh for the new tokens.

    `opened`: they have a session of their own; `touched`: they belong to one that was there; `ended`: to one that has
    ended; `stale`: to one that has ended out of distrust, and the user has not signed in since; `full`: there is no
    room; `unknown`: they may not open a session. `expires_at` is the session's, in seconds.
    """

    outcome: Literal["opened", "touched", "ended", "stale", "full", "unknown"]
    session_id: int
    end_reason: EndReason | None
    evicted: int
    expires_at: float

    @property
    def is_live(self) -> bool:
        return self.outcome in {"opened", "touched"}


class TokenLookup(msgspec.Struct, frozen=True):
    """The session that tokens name: `live`, `ended`, `unknown` (no session; tokens issued until `not_before`, in
    seconds, may not open one), or `crowded` (live, with more tokens than it may have). `is_newest`: the refresh token
    asked about is the one that the session was given last. `ended_at` is that of an ended session, in seconds; 0 where
    the end covers tokens of any time."""

    outcome: Literal["live", "ended", "unknown", "crowded"]
    session_id: int
    end_reason: EndReason | None
    expires_at: float
    not_before: float
    is_newest: bool
    ended_at: float = 0.0


class Rotation(msgspec.Struct, frozen=True):
    """The state of a refresh token that Gatekeeper issued: `current` (to be rotated), `rotated`, `repeated` (rotated
    within the window; `sealed` is the pair that replaced it, given once more), `reused` (which has ended its session),
    `ended`, `unknown`."""

    outcome: Literal["current", "rotated", "repeated", "reused", "ended", "unknown"]
    session_id: int = 0
    end_reason: EndReason | None = None
    reference: str = ""
    expires_at: float = 0.0
    claims: str = ""
    sealed: bytes = b""


class Successor(msgspec.Struct, frozen=True):
    """The pair that replaces a refresh token: the digest of the new one, `jti` and expiry (seconds) of the access
    token, and both tokens sealed."""

    digest: str
    jti: str
    expires_at: float
    sealed: bytes


class SignIns:
    """Logins and refreshes in the store. Every method raises `StoreUnavailable`."""

    def __init__(self, runner: ScriptRunner, *, reuse_window_seconds: float = 0.0) -> None:
        self._runner = runner
        self._window = microseconds(reuse_window_seconds)

    def __repr__(self) -> str:
        return f"<SignIns {self._runner!r}>"

    async def user_of(self, digest: str) -> str | None:
        """The user of a refresh token, as far as the index knows."""
        return await self._runner.indexes.user_of_refresh_token(digest)

    async def owner_of_learnt(self, digest: str) -> tuple[str, int] | None:
        """The user and the id of the only session that was given a text which may be a refresh token, as far as the
        index knows."""
        return await self._runner.indexes.owner_of_learnt(digest)

    async def user_of_sid(self, sid: str) -> str | None:
        """The user of a sign-in at an identity provider, as far as the index knows."""
        return await self._runner.indexes.user_of_sid(sid)

    async def log_in(
        self,
        claims: Claims,
        client: Client,
        *,
        exempt: bool,
        refresh: RefreshToken | None,
        presented: Claims | None = None,
        repeats: bool = False,
        kept_claims: str = "",
        user_name: str = "",
        besides: Besides = NOTHING,
    ) -> SignInResult:
        """Opens a session for tokens that are about to be handed out. The session of `presented`, a token of the login
        request, ends. `repeats`: the token is no new one, because the request itself brought it; it opens nothing once
        its session has ended. `kept_claims` (JSON) are kept for tokens issued later; `user_name` is the name that was
        typed, for the audit log."""
        actor = Actor.of(client, claims.user, user_name=user_name)

        def read(reply: list[Any]) -> SignInResult:
            if len(reply) > _SIGN_IN_FIELDS and presented is not None:
                left, record = reply[_SIGN_IN_FIELDS:]
                self._runner.recent.remember_session(claims.user, left.decode(), record, actor)
                self._runner.revoked.add_refused(presented, int(left), EndReason.LOGGED_OUT)
            return _signed_in(reply[:_SIGN_IN_FIELDS])

        signed_in = await self._runner.run_audited(
            LOGIN,
            claims.user,
            read,
            {
                "opening": self._opening(claims, client, exempt, refresh, "password"),
                **({"presented": named_by(presented)} if presented is not None else {}),
                "repeats": repeats,
                "claims": kept_claims,
                **self._besides(besides),
            },
            actor=actor,
            indexes=self._indexes(claims, refresh),
        )
        return await self._settled(claims, signed_in, besides)

    async def _settled(self, claims: Claims, signed_in: SignInResult, besides: Besides) -> SignInResult:
        if signed_in.is_live:
            self._runner.revoked.add_live(claims.user, claims.reference, signed_in.session_id, claims.digest)
            learn = self._runner.indexes.learn
            user, session_id = claims.user, signed_in.session_id
            await asyncio.gather(
                *(learn(each.digest, user, session_id, each.expires_at) for each in besides.learnt),
                *(learn(each.digest, user, session_id, each.expires_at, presented=True) for each in besides.presented),
            )
        return signed_in

    def _besides(self, besides: Besides) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if besides.more:
            expires_at = self._runner.openings.expires_at
            arguments["more"] = [
                {**named_by(each), "token_expires_at": expires_at(each.expires_at)} for each in besides.more
            ]
        if learnt := [*besides.learnt, *besides.presented]:
            arguments["learnt_expires_at"] = microseconds(max(each.expires_at or 0 for each in learnt))
        return arguments

    async def refresh(
        self,
        claims: Claims,
        client: Client,
        *,
        exempt: bool,
        refresh: RefreshToken | None,
        linked: int | None,
        besides: Besides = NOTHING,
    ) -> SignInResult:
        """Gives new tokens to the session `linked`; without one to the session that they name, or to a new one."""
        signed_in = await self._runner.run_audited(
            REFRESH,
            claims.user,
            _signed_in,
            {
                "opening": self._opening(claims, client, exempt, refresh, "refresh"),
                "linked": str(linked or 0),
                "adopt_not_before": self._runner.epoch.adopt_not_before,
                **self._besides(besides),
            },
            actor=Actor.of(client, claims.user),
            indexes=self._indexes(claims, refresh),
        )
        return await self._settled(claims, signed_in, besides)

    async def lookup(
        self, user: str, *, digest: str | None = None, claims: Claims | None = None, session_id: int | None = None
    ) -> TokenLookup:
        """Finds the session that a refresh token or an access token of `user` names, or the one with an id. Touches
        nothing."""
        arguments: dict[str, Any] = {"refresh": digest or "", "reference": ""}
        if session_id is not None:
            arguments["session"] = str(session_id)
        if claims is not None:
            arguments |= named_by(claims)
            arguments["token_expires_at"] = self._runner.openings.expires_at(claims.expires_at)
        found = await self._runner.run(LOOKUP, user, _lookup, arguments)
        if found.outcome == "unknown":
            lost = self._runner.epoch.adopt_not_before / 1e6
            return msgspec.structs.replace(found, not_before=max(found.not_before, lost))
        return found

    async def renew(self, claims: Claims, session_id: int) -> None:
        """Gives a session the access token that a response to one of its requests hands out, unless an adoption would
        refuse it for its age."""

        def read(reply: list[Any]) -> str:
            _, outcome = reply
            return str(_outcome(outcome, "joined", "known", "older", "ended", "crowded", "unknown"))

        token = {
            **named_by(claims),
            "id": str(session_id),
            "jti": written(claims.jti) if claims.jti else "",
            "token_expires_at": self._runner.openings.expires_at(claims.expires_at),
            "adopt_not_before": self._runner.epoch.adopt_not_before,
        }
        if await self._runner.run(RENEW, claims.user, read, token) == "joined":
            self._runner.revoked.add_live(claims.user, claims.reference, session_id, claims.digest)

    async def lookup_refresh_token(self, user: str, digest: str, *, actor: Actor = SYSTEM) -> Rotation:
        """Returns the state of a refresh token. One that is reused ends its session."""
        return await self._rotate(user, {"presented": digest}, actor)

    async def rotate(self, user: str, digest: str, successor: Successor, *, actor: Actor = SYSTEM) -> Rotation:
        """Replaces a current refresh token; `repeated` where another request was faster."""
        await self._runner.indexes.add_refresh_token(successor.digest, user)
        replacement = {
            "refresh": successor.digest,
            "jti": successor.jti,
            "token_expires_at": self._runner.openings.expires_at(successor.expires_at),
            "sealed": packed_string(successor.sealed),
            "window": self._window,
        }
        return await self._rotate(user, {"presented": digest, "successor": replacement}, actor)

    async def _rotate(self, user: str, arguments: Mapping[str, Any], actor: Actor) -> Rotation:
        pairs = self._runner.keys.pairs(user)

        def read(reply: list[Any]) -> Rotation:
            rotation = _rotation(reply)
            if rotation.outcome == "reused":
                self._runner.recent.remember_session(user, str(rotation.session_id), reply[3], actor)
            return rotation

        rotation = await self._runner.run_audited(ROTATE, user, read, arguments, actor=actor, extra_key=pairs)
        if rotation.outcome == "reused":
            self._runner.revoked.add_ended(user, rotation.session_id, EndReason.REFRESH_REUSED)
        return rotation

    def _opening(
        self, claims: Claims, client: Client, exempt: bool, refresh: RefreshToken | None, login_method: str
    ) -> dict[str, Any]:
        return self._runner.openings.fields(
            claims,
            client,
            exempt=exempt,
            login_method=login_method,
            refresh=refresh.digest if refresh else "",
            refresh_expires_at=refresh.expires_at if refresh else None,
        )

    def _indexes(self, claims: Claims, refresh: RefreshToken | None) -> list[Awaitable[None]]:
        if refresh is None:
            return self._runner.indexes.for_opening(claims)
        digests = [each for each in (refresh.digest, refresh.signed) if each]
        return self._runner.indexes.for_opening(claims, refresh=digests, refresh_expires_at=refresh.expires_at)


def _outcome(raw: bytes, *known: str) -> Any:
    """The outcome in a reply. Raises `ValueError` for one that the script does not have."""
    outcome = raw.decode()
    if outcome not in known:
        raise ValueError(outcome)
    return outcome


def _reason(text: bytes) -> EndReason | None:
    return EndReason(text.decode()) if text else None


def _signed_in(reply: list[Any]) -> SignInResult:
    _, outcome, session_id, reason, evicted, expires_at = reply
    known = _outcome(outcome, "opened", "touched", "ended", "stale", "full", "unknown")
    return SignInResult(known, int(session_id), _reason(reason), int(evicted), int(expires_at) / 1e6)


def _lookup(reply: list[Any]) -> TokenLookup:
    _, outcome, session_id, reason, instant, newest = reply
    at = int(instant) / 1e6
    is_known = outcome != b"unknown"
    known = _outcome(outcome, "live", "ended", "unknown", "crowded")
    return TokenLookup(
        known,
        int(session_id),
        _reason(reason),
        at if is_known else 0.0,
        0.0 if is_known else at,
        newest == 1,
        at if known == "ended" else 0.0,
    )


def _rotation(reply: list[Any]) -> Rotation:
    _, outcome, *rest = reply
    return _ROTATIONS[outcome.decode()](*rest)


_ROTATIONS: Final[dict[str, Callable[..., Rotation]]] = {
    "current": lambda session_id, reference, expires_at, claims: Rotation(
        "current",
        int(session_id),
        reference=reference.decode(),
        expires_at=int(expires_at) / 1e6,
        claims=claims.decode(),
    ),
    "rotated": lambda session_id: Rotation("rotated", int(session_id)),
    "repeated": lambda session_id, sealed: Rotation("repeated", int(session_id), sealed=sealed),
    "reused": lambda session_id, record: Rotation("reused", int(session_id), EndReason.REFRESH_REUSED),
    "ended": lambda session_id, reason: Rotation("ended", int(session_id), _reason(reason)),
    "unknown": lambda: Rotation("unknown"),
}
