"""Verify logout tokens of an identity provider (OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens import jws, strict_json
from gatekeeper.tokens.claims import LOGOUT_EVENT, check_issuer_and_audience, parse_user_id, read_id, read_validity
from gatekeeper.tokens.key_material import check_algorithms
from gatekeeper.tokens.keys import KeySource
from gatekeeper.tokens.verifier import MAX_LEEWAY_SECONDS
from gatekeeper.tokens.verify_queue import VerifyQueue

# Section 2.4 recommends the first; older providers write the second or none. None is the type of an access token.
LOGOUT_TYPES = frozenset({"logout+jwt", "jwt"})
# The latest `exp` that section 2.4 recommends.
_SECONDS_WITHOUT_EXPIRY = 120


class LogoutToken(msgspec.Struct, frozen=True, kw_only=True):
    """A verified logout token: it ends the session `sid`, or all sessions of the user `sub`; at least one is set.

    A `jti` counts once: the caller remembers it until `expires_at`. Times are in seconds since 1970.
    """

    sid: str | None
    sub: str | None
    jti: str
    issued_at: float
    expires_at: float


class LogoutTokenVerifier:
    """Verifies logout tokens of one `issuer` for `audience`, one or several (`None`: not checked).

    `leeway_seconds` widens `exp`, `nbf` and `iat`, and `early_seconds` the last two further, for a host whose clock is
    late; `now` returns seconds since 1970. Raises `ValueError` for a configuration under which every token would pass,
    or none.
    """

    def __init__(
        self,
        *,
        keys: KeySource,
        algorithms: Sequence[str],
        issuer: str,
        audience: str | Sequence[str] | None,
        leeway_seconds: float,
        early_seconds: float = 0.0,
        verify_queue: VerifyQueue | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_algorithms(algorithms)
        if not issuer or audience == "":
            raise ValueError(
                "the issuer or the audience of logout tokens is empty; accepted: an issuer, and an audience or None"
            )
        if not 0 <= leeway_seconds <= MAX_LEEWAY_SECONDS:
            raise ValueError(f"the leeway is {leeway_seconds:g} s; accepted: 0 to {MAX_LEEWAY_SECONDS:g}")
        self._keys = keys
        self._algorithms = frozenset(algorithms)
        self._issuer = issuer
        self._audiences = None if audience is None else frozenset([audience] if isinstance(audience, str) else audience)
        self._leeway_seconds = leeway_seconds
        self._early_seconds = max(early_seconds, leeway_seconds)
        self._verify_queue = verify_queue or VerifyQueue()
        self._now = now

    def __repr__(self) -> str:
        return f"LogoutTokenVerifier({self._issuer}; {', '.join(sorted(self._algorithms))}; {self._keys!r})"

    async def verify(self, token: str) -> LogoutToken:
        """Verify `token`. Raises `TokenRejected`, and `KeysUnavailable` where no key set was ever fetched."""
        signed = await jws.verify(
            token, keys=self._keys, algorithms=self._algorithms, verify_queue=self._verify_queue, types=LOGOUT_TYPES
        )
        try:
            members = strict_json.loads(signed.payload)
        except ValueError:
            raise TokenRejected("the payload is not strict JSON") from None
        if not isinstance(members, dict):
            raise TokenRejected("the payload is not an object")
        check_issuer_and_audience(members, issuers={self._issuer}, audiences=self._audiences)
        _check_event(members)
        validity, issued_at = read_validity(_with_expiry(members))
        found = _read(members, issued_at, validity.expires_at)
        now = self._now()
        validity.check(now, self._early_seconds, ignore_expiry=True)
        validity.check(now, self._leeway_seconds, ignore_start=True)
        return found


def _with_expiry(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """The claims, with an `exp` two minutes after `iat` where there is none: older versions of the specification asked
    for none."""
    issued_at = members.get("iat")
    if "exp" in members or isinstance(issued_at, bool) or not isinstance(issued_at, int | float):
        return members
    return {**members, "exp": issued_at + _SECONDS_WITHOUT_EXPIRY}


def _check_event(members: Mapping[str, Any]) -> None:
    events = members.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        raise TokenRejected("events does not mark this as a logout token")
    if "nonce" in members:
        # Section 2.4: a logout token cannot be used as an ID token, nor the reverse.
        raise TokenRejected("a logout token has no nonce")


def _read(members: Mapping[str, Any], issued_at: float | None, expires_at: float) -> LogoutToken:
    sid, jti = read_id(members, "sid"), read_id(members, "jti")
    sub = parse_user_id(members["sub"]) if "sub" in members else None
    if issued_at is None:
        raise TokenRejected("iat is missing")
    if jti is None:
        raise TokenRejected("jti is missing")
    if sid is None and sub is None:
        raise TokenRejected("sid and sub are both missing")
    return LogoutToken(sid=sid, sub=sub, jti=jti, issued_at=issued_at, expires_at=expires_at)
