"""Verify access tokens: first the JWS, then the claims; a bounded cache keeps the claims of good tokens.

RFC 8725 is the checklist: algorithm by allow-list and bound to the key (3.1, 3.2), every step validated (3.3, 3.4), key
strength (3.5), nothing inflated (3.6), UTF-8 (3.7), issuer, audience and kind (3.8, 3.9, 3.11, 3.12), and nothing
fetched because a header says so (3.10).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from gatekeeper.errors import TokenRejected
from gatekeeper.models import Claims
from gatekeeper.tokens import jws
from gatekeeper.tokens.claims import ClaimRules, Validity
from gatekeeper.tokens.key_material import check_algorithms
from gatekeeper.tokens.keys import KeySource
from gatekeeper.tokens.verify_queue import VerifyQueue

# Rule 2.5.
MAX_LEEWAY_SECONDS = 300.0
# Of the texts in the cache; their claims take a few times as much.
_MAX_CACHED_BYTES = 32 * 1024 * 1024


class _CachedClaims(msgspec.Struct, frozen=True):
    claims: Claims
    validity: Validity


class Verifier:
    """Verifies access tokens under one configuration.

    `issuer` and `audience` must match exactly: one string, one of several, or `None` for no check. `required_claims`
    are names and values; `types` are accepted in the header beside `JWT` and `at+jwt`; longer
    tokens than `max_token_bytes` are refused. `leeway_seconds`
    (0 to 300) widens `exp`, `nbf` and `iat`; `now` returns seconds since 1970. The cache keeps the claims of the last
    `cache_size` good tokens while the keys stay the same; 0 switches it off. The configuration belongs to the
    instance, so a result for one audience never serves another (CVE-2026-33496).

    Raises `ValueError` for a configuration under which every token would pass, or none.
    """

    def __init__(
        self,
        *,
        keys: KeySource,
        algorithms: Sequence[str],
        issuer: str | Sequence[str] | None,
        audience: str | Sequence[str] | None,
        leeway_seconds: float,
        user_claim: str,
        roles_claim: str,
        admin_roles: Sequence[str],
        required_claims: Sequence[tuple[str, str]] = (),
        types: Sequence[str] = (),
        max_token_bytes: int = jws.MAX_TOKEN_BYTES,
        verify_queue: VerifyQueue | None = None,
        now: Callable[[], float] = time.time,
        cache_size: int = 10_000,
    ) -> None:
        check_algorithms(algorithms)
        if not 0 <= leeway_seconds <= MAX_LEEWAY_SECONDS:
            raise ValueError(f"the leeway is {leeway_seconds:g} s; accepted: 0 to {MAX_LEEWAY_SECONDS:g}")
        if not user_claim:
            raise ValueError("the user claim is empty; accepted: the name of a claim, such as sub")
        self._keys = keys
        self._algorithms = frozenset(algorithms)
        self._rules = ClaimRules(
            issuers=_names("issuer", issuer),
            audiences=_names("audience", audience),
            user_claim=user_claim,
            roles_claim=roles_claim,
            admin_roles=frozenset(admin_roles),
            required=tuple(required_claims),
        )
        self._types = jws.ACCESS_TYPES.union(map(jws.normalise_type, types))
        self._max_token_bytes = max_token_bytes
        self._leeway_seconds = leeway_seconds
        self._verify_queue = verify_queue or VerifyQueue()
        self._now = now
        self._cache_size = cache_size
        self._cache: OrderedDict[str, _CachedClaims] = OrderedDict()
        self._cached_bytes = 0
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._generation = keys.generation

    def __repr__(self) -> str:
        return f"Verifier({', '.join(sorted(self._algorithms))}; {len(self._cache)} tokens cached; {self._keys!r})"

    @property
    def leeway_seconds(self) -> float:
        """The clock difference that is allowed."""
        return self._leeway_seconds

    @property
    def roles_claim(self) -> str:
        """The claim that holds the roles."""
        return self._rules.roles_claim

    def cached(self, token: str) -> Claims | None:
        """Return the claims of a token in the cache, if it is still valid and the keys are the same; else `None`."""
        if self._generation != self._keys.generation:
            self._forget(self._keys.generation)
            return None
        entry = self._cache.get(token)
        if entry is None:
            return None
        try:
            entry.validity.check(self._now(), self._leeway_seconds)
        except TokenRejected:
            del self._cache[token]
            self._cached_bytes -= len(token)
            return None
        self._cache.move_to_end(token)
        return entry.claims

    async def verify(self, token: str, *, ignore_start: bool = False, ignore_expiry: bool = False) -> Claims:
        """Verify `token` and return its claims. With `ignore_start` a token passes whose only fault is its `nbf` or
        `iat`, with `ignore_expiry` one whose only fault is its `exp`.

        Raises `TokenRejected`, with `TOKEN_EXPIRED` where `exp` is the only fault, and `KeysUnavailable` where no
        key set was ever fetched.
        """
        claims = self.cached(token)
        if claims is not None:
            return claims
        signed = await jws.verify(
            token,
            keys=self._keys,
            algorithms=self._algorithms,
            verify_queue=self._verify_queue,
            types=self._types,
            max_bytes=self._max_token_bytes,
        )
        generation = self._keys.generation
        try:
            claims, validity = self._rules.read(signed.payload)
            validity.check(self._now(), self._leeway_seconds, ignore_start=ignore_start, ignore_expiry=ignore_expiry)
        except TokenRejected as rejected:
            rejected.is_signed = True
            raise
        if not (ignore_start or ignore_expiry):
            self._remember(token, _CachedClaims(claims, validity), generation)
        return claims

    def has_form(self, token: str) -> bool:
        """Return true where a text may be an access token, keys and times aside."""
        try:
            self._rules.read(self._parse(token).payload)
        except TokenRejected:
            return False
        return True

    def may_verify(self, token: str, *, ignore_times: bool = False) -> bool:
        """Return false for a text that is certainly no good token now: by its form, its header, its claims and times,
        or because `verify_once` refused it under the same keys. No signature is verified."""
        if self.cached(token) is not None:
            return True
        if not self.may_be_signed(token):
            return False
        try:
            parsed = self._parse(token)
            _, validity = self._rules.read(parsed.payload)
            if not ignore_times:
                validity.check(self._now(), self._leeway_seconds)
        except TokenRejected:
            return False
        return True

    def may_be_signed(self, token: str) -> bool:
        """Return false for a text that no key verifies: by its form, its header, or because `verify_once` refused it
        under the same keys."""
        if _digest(token) in self._refused:
            return False
        try:
            header = self._parse(token).header
        except TokenRejected:
            return False
        return self._keys.may_verify(algorithm=header.algorithm, kid=header.kid)

    async def verify_once(self, token: str) -> Claims:
        """Verify a token as `verify` does, and remember one with a bad signature until the keys change: a client may
        send it with every request, and it is no reason to refuse one."""
        generation = self._keys.generation
        try:
            return await self.verify(token)
        except TokenRejected as rejected:
            if not rejected.is_signed and generation == self._keys.generation:
                if generation != self._generation:
                    self._forget(generation)
                self._refused[_digest(token)] = None
                if len(self._refused) > self._cache_size:
                    self._refused.popitem(last=False)
            raise

    def _forget(self, generation: int) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        self._refused.clear()
        self._generation = generation

    def _remember(self, token: str, entry: _CachedClaims, generation: int) -> None:
        if generation != self._generation:
            self._forget(generation)
        if token not in self._cache:
            self._cached_bytes += len(token)
        self._cache[token] = entry
        while len(self._cache) > self._cache_size or self._cached_bytes > _MAX_CACHED_BYTES:
            oldest, _ = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest)

    def _parse(self, token: str) -> jws.Jws:
        return jws.parse(token, self._algorithms, self._types, max_bytes=self._max_token_bytes)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _names(what: str, value: str | Sequence[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    names = frozenset([value] if isinstance(value, str) else value)
    if not names or "" in names:
        # An empty rule was probably forgotten, and must not switch the check off (CVE-2022-46153).
        raise ValueError(f"the {what} is empty; accepted: one or more names, or None to switch the check off")
    return names
