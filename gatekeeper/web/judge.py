"""The verdict on a request to the application, and the headers by which the application learns of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.requests import RequestFacts
from gatekeeper.auth.strays import StrayTokens, all_of
from gatekeeper.errors import KeysUnavailable, StoreUnavailable
from gatekeeper.http.headers import DEGRADED, HeaderList
from gatekeeper.models import Removal, Verdict
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.web.request import IncomingRequest
from gatekeeper.web.rules import RequestRules

_BEARER = b"Bearer "


class Judge:
    """Judges requests to the application: the token that decides, and those beside it."""

    def __init__(self, rules: RequestRules, gate: Gate, strays: StrayTokens, telemetry: Telemetry) -> None:
        self._rules = rules
        self._gate = gate
        self._strays = strays
        self._telemetry = telemetry

    def __repr__(self) -> str:
        return f"<Judge {self._strays!r}>"

    async def verdict(self, incoming: IncomingRequest, *, public: bool) -> Verdict:
        """The verdict on a request. On a public path one that cannot be judged is anonymous; elsewhere raises
        `StoreUnavailable` and `KeysUnavailable`."""
        facts = self._rules.facts(incoming, own=False)
        if not public:
            return await self._judged(facts, public=False)
        try:
            return await self._judged(facts, public=True)
        except (StoreUnavailable, KeysUnavailable) as error:
            self._telemetry.failed(error)
            removal = all_of(self._strays.find(facts, public=True))
            return Verdict(token_source="unjudged", removal=removal)  # noqa: S106 - a source, no token

    async def opaque(self, incoming: IncomingRequest) -> Verdict:
        """The verdict on a request whose Bearer is the backend's to judge: a refusal, or what is removed from it.
        Raises `StoreUnavailable` and `KeysUnavailable`."""
        found = self._strays.find(self._rules.facts(incoming, own=False), public=False)
        if not found:
            return Verdict()
        strays = await self._strays.verified(found)
        refusal, removal = await self._strays.judge(found, strays, user=None, public=True)
        return refusal or Verdict(removal=removal)

    async def _judged(self, facts: RequestFacts, *, public: bool) -> Verdict:
        identified = await self._gate.identify(facts)
        if identified.claims is None and not public:
            return identified
        found = self._strays.find(facts, public=public)
        if found:
            return await self._with_strays(identified, facts, found, public=public)
        return await self._admit(identified, facts)

    async def _admit(self, identified: Verdict, facts: RequestFacts) -> Verdict:
        """Admit who was identified; without the store while that is away and the operator allows it."""
        if identified.claims is None:
            return identified
        try:
            return await self._gate.admit(identified, identified.claims, facts.client, facts.checked)
        except StoreUnavailable as error:
            verdict = self._gate.without_store(identified, error)
            self._telemetry.failed(error)
            if verdict.admitted:
                self._telemetry.metrics.passed_degraded()
            return verdict

    async def _with_strays(
        self, identified: Verdict, facts: RequestFacts, found: Mapping[str, int], *, public: bool
    ) -> Verdict:
        """Judge a request with tokens where no source looks; all look-ups go out with the check."""
        strays = await self._strays.verified(found)
        verdict, (refusal, removal) = await asyncio.gather(
            self._admit(identified, facts),
            self._strays.judge(found, strays, user=identified.user, public=public),
        )
        if refusal is not None and (verdict.admitted or public):
            return refusal
        twins = verdict.removal.twins if verdict.removal else frozenset[str]()
        return msgspec.structs.replace(
            verdict, removal=Removal(headers=removal.headers, cookies=removal.cookies, twins=twins)
        )


def anonymous_headers(rules: RequestRules, headers: HeaderList, verdict: Verdict) -> HeaderList:
    """The headers of a request that passes as anonymous: without the token that was refused or not judged."""
    if verdict.token_source is not None:
        headers = rules.sources.strip_tokens(headers)
    return _without(rules, headers, verdict.removal)


def admitted_headers(
    rules: RequestRules, headers: HeaderList, verdict: Verdict, incoming: IncomingRequest
) -> HeaderList:
    """The headers of an admitted request: the token that decided, if it goes on, and who the user is."""
    claims, source = verdict.claims, verdict.token_source or ""
    assert claims is not None  # noqa: S101 - an admitted verdict has them
    if not rules.forward_authorization:
        headers = rules.sources.strip_tokens(headers)
    elif verdict.more_tokens:
        # A backend that looks elsewhere first, and less closely, must not find a token that was not judged.
        headers = rules.sources.strip_tokens(headers, keep_source=verdict.token_source)
    if verdict.removal is not None:
        headers = _without(rules, headers, verdict.removal)
    if rules.forward_authorization and source.startswith(("query:", "subprotocol")):
        headers = [*(pair for pair in headers if pair[0] != b"authorization"), _as_authorization(rules, incoming)]
    headers.extend(rules.identity.values(claims.user, verdict.session_id, claims.roles, claims.claims))
    if verdict.degraded:
        headers.append((DEGRADED, b"1"))
    return headers


def opaque_headers(rules: RequestRules, headers: HeaderList, verdict: Verdict) -> HeaderList:
    """The headers of a request whose Bearer is the backend's to judge: no token of another source goes on."""
    own = [pair for pair in headers if pair[0] == b"authorization"]
    rest = rules.sources.strip_tokens([pair for pair in headers if pair[0] != b"authorization"])
    return _without(rules, [*rest, *own], verdict.removal)


def _as_authorization(rules: RequestRules, incoming: IncomingRequest) -> tuple[bytes, bytes]:
    """The token of a query or a subprotocol in the place where backends look for it."""
    facts = rules.facts(incoming, own=False)
    found = rules.sources.find(
        facts.headers, query=facts.query, websocket=facts.websocket, event_stream=facts.event_stream
    )
    assert found is not None  # noqa: S101 - it was found before
    return b"authorization", _BEARER + found.token.encode()


def _without(rules: RequestRules, headers: HeaderList, removal: Removal | None) -> HeaderList:
    if removal is None:
        return headers
    if removal.twins:
        headers = rules.sources.strip_twins(headers, removal.twins)
    if removal.headers or removal.cookies:
        headers = rules.strays.without(headers, headers_with=removal.headers, cookies_with=removal.cookies)
    return headers
