"""Sign-ins at a backend that issues its own tokens: the effect of its logins, refreshes and logouts on sessions.

One object follows one request. `before` runs before the backend sees the request, `after` before the client sees the
response; a `Problem` is sent in place of it, None lets it pass. Both raise `StoreUnavailable` and `KeysUnavailable`:
if they fail, nothing is forwarded and no token is handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import msgspec

from gatekeeper.auth.gate import TWO_USERS
from gatekeeper.auth.links import find_links, holder_of, learnt_links
from gatekeeper.auth.new_tokens import NewTokens, as_learnt, find_new_tokens, learnt, refresh_token, verified
from gatekeeper.auth.requests import ObservedSignIn, SessionOwner, SignInRequest, SignInResponse
from gatekeeper.auth.services import SignInServices, counted, record, record_failed_login, refusal
from gatekeeper.auth.sign_out import SignOut, SignOutTargets
from gatekeeper.errors import Reason, StoreUnavailable
from gatekeeper.http.paths import PathKind
from gatekeeper.models import Claims, Problem
from gatekeeper.sessions.audit_event import Action
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.sign_ins import NOTHING, Besides, TokenLookup
from gatekeeper.tokens.learnable import LEAST_LEARNT, REFRESH_PLACE, place_of
from gatekeeper.tokens.refresh_digest import lookup_digests, placed_digest
from gatekeeper.tokens.token_warnings import UnusableToken

_CROWDED_SECONDS: Final = 60
# Each costs a signature.
_MOST_FOUND: Final = 8
_LIVE: Final = frozenset({"live", "crowded"})
# Anything else is no usable token: there is nothing to end, and the backend responds.
_LOGOUT_PROBLEMS: Final = frozenset({Reason.TOKEN_INVALID, Reason.STORE_UNAVAILABLE})


class _Observed:
    """The common part of logins, refreshes and logouts."""

    _what = "login"

    def __init__(self, services: SignInServices, request: SignInRequest) -> None:
        self._services = services
        self._request = request
        self.owner = SessionOwner()

    def under_way(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def _new_tokens(self, response: SignInResponse) -> NewTokens | None:
        services, unusable = self._services, list[UnusableToken]()
        new = await find_new_tokens(services.verifier, services.sign_ins, self._request, response.given, unusable)
        if new is None and unusable:
            services.warnings.unusable(self._what, unusable, response.given.names)
        elif new is None and self._what == "login" and self._is_success(response.status):
            services.warnings.nothing_found(self._what, response.given.names)
        return new

    def _is_success(self, status: int) -> bool:
        return 200 <= status < 300 and status not in self._services.failure_statuses

    async def _bearer(self) -> Claims | None:
        """The good token of the request itself, expired or not."""
        return (await self._services.gate.identify(self._request.facts, ignore_times=True)).claims

    def _is(self, user: str, session_id: int) -> None:
        self.owner.user, self.owner.session_id = user, session_id

    async def _refuse(self, user: str, ended: TokenLookup) -> Problem:
        self._is(user, ended.session_id)
        await self._record(Action.REFRESH_REFUSED, reason=ended.end_reason)
        return refusal(ended.end_reason)

    async def _record(self, action: Action, *, reason: str | None = None) -> None:
        await record(self._services, action, self._request, self.owner, reason=reason)


class Login(_Observed):
    """A login: rate-limited before, a session opened after."""

    def under_way(self) -> AbstractContextManager[None]:
        attempts = self._services.attempts
        return nullcontext() if attempts is None else attempts.in_progress(self._request.user_names)

    async def before(self) -> Problem | None:
        attempts, names = self._services.attempts, self._request.user_names
        try:
            wait = await attempts.wait_seconds(names, self._request.address) if attempts is not None else 0
        except StoreUnavailable as error:
            # Not counted: the operator allows logins without the store.
            self._or_raise(error)
            return None
        if not wait:
            return await self._refreshed_in_vain()
        await self._record(Action.LOGIN_THROTTLED)
        return Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait)

    async def _refreshed_in_vain(self) -> Problem | None:
        """The refusal of a refresh at a path for logins: of a request that says of no user who they are, but holds the
        refresh token of a session that has ended."""
        if not self._request.presented:
            return None
        try:
            links = await find_links(self._services.sign_ins, lookup_digests(self._request.presented))
        except StoreUnavailable as error:
            self._or_raise(error)
            return None
        for user, linked in links:
            if linked.outcome == "ended":
                return await self._refuse(user, linked)
        return None

    async def after(self, response: SignInResponse) -> Problem | None:
        try:
            return await self._signed_in(response)
        except StoreUnavailable as error:
            self._or_raise(error)
            return None

    def _or_raise(self, error: StoreUnavailable) -> None:
        """Raise `error` unless a good token suffices while the store is away."""
        if not self._services.gate.allows_verified(error):
            raise error

    async def _signed_in(self, response: SignInResponse) -> Problem | None:
        address, attempts = self._request.address, self._services.attempts
        new = await self._new_tokens(response)
        if new is None and response.status in self._services.failure_statuses:
            if attempts is not None:
                await attempts.failed(self._request.user_names, address)
            await record_failed_login(self._services, self._request, self.owner)
            return None
        if new is None:
            return None
        claims = new.claims
        bearer = await self._bearer()
        signed_in = await self._services.sign_ins.log_in(
            claims,
            self._request.client,
            exempt=self._services.exempt.covers(claims),
            refresh=refresh_token(response.given.refresh_token),
            presented=bearer if bearer is not None and bearer.user == claims.user else None,
            # A backend that finds its own cookie good asks for no password: what the request brought is no new token.
            repeats=self._request.may_carry(new.text),
            user_name=self._request.sent.user_name or "",
            besides=new.besides,
        )
        self._is(claims.user, signed_in.session_id)
        problem = counted(self._services.events, signed_in)
        if problem is not None:
            if signed_in.outcome != "full":
                await self._record(Action.LOGIN_REFUSED, reason=problem.reason.code)
            return problem
        if attempts is not None:
            await attempts.succeeded(self._request.user_names, address)
        return None


class Refresh(_Observed):
    """A refresh: refused before if its session has ended, in the same session after.

    Only the backend knows which tokens of a request it reads. So every text that is a known refresh token or an access
    token is looked up: together they must name one user, and none of them may carry a session past its end.
    """

    _what = "refresh"

    def __init__(self, services: SignInServices, request: SignInRequest) -> None:
        super().__init__(services, request)
        self._sent = refresh_token(request.sent.refresh_token)
        self._texts = request.token_like
        self._digests = lookup_digests([*([sent] if (sent := request.sent.refresh_token) else []), *self._texts])
        self._is_known = False
        self._doubt: tuple[str, TokenLookup] | None = None

    async def before(self) -> Problem | None:
        verdict = await self._services.gate.identify(self._request.facts, ignore_times=True)
        if verdict.token_source == "ambiguous":  # noqa: S105 - a source, no token
            return Problem(reason=Reason.TOKEN_INVALID, why=verdict.why)
        holders = await self._holders()
        others = [claims for claims in await self._access_tokens() if claims != verdict.claims]
        bearers = [*([verdict.claims] if verdict.claims is not None else []), *others]
        users = {*holders.values(), *(claims.user for claims in bearers)}
        if len(users) > 1:
            return Problem(reason=Reason.TOKEN_INVALID, why=TWO_USERS)
        self._is_known = self._sent is not None and self._sent.digest in holders
        for user in users:
            problem = await self._look_up(user, list(holders), bearers, has_bearer=verdict.claims is not None)
            if problem is not None or self.owner.session_id is not None:
                return problem
        return await self._look_up_learnt(users, may_doubt=not users)

    async def _is_doubtful(self) -> bool:
        """True where a text that was learnt may not be what the backend renews: beside it stands a refresh token that
        is not known, by its name, and it was learnt from a cookie that is not called so."""
        called = [self._request.sent.refresh_token or ""]
        called += [text for name, text in self._request.learnable if place_of(name) == REFRESH_PLACE]
        unknown = [text for text in called if len(text) >= LEAST_LEARNT]
        known = await asyncio.gather(*(find_links(self._services.sign_ins, lookup_digests([text])) for text in unknown))
        if all(known):
            return False
        placed = [placed_digest(REFRESH_PLACE, text) for text in self._texts]
        return not await learnt_links(self._services.sign_ins, placed)

    async def _holders(self) -> dict[str, str]:
        """The known refresh tokens of the request by digest, with their users; the one under its usual name comes
        first."""
        users = await asyncio.gather(*map(self._services.sign_ins.user_of, self._digests))
        return {digested: user for digested, user in zip(self._digests, users, strict=True) if user is not None}

    async def _access_tokens(self) -> list[Claims]:
        jwts = [token for token in self._texts if token.count(".") == 2]
        found = [await verified(self._services.verifier, token, ignore_expiry=True) for token in jwts]
        return list({(claims.reference, claims.digest): claims for claims in found if claims is not None}.values())

    async def _look_up(
        self, user: str, digests: Sequence[str], bearers: Sequence[Claims], *, has_bearer: bool
    ) -> Problem | None:
        """Look up the sessions that all of these tokens name. An ended session refuses the request, unless only an
        access token beside the deciding one names it and another session is live."""
        link = self._services.sign_ins.lookup
        links = await asyncio.gather(
            *(link(user, digest=digested) for digested in digests), *(link(user, claims=claims) for claims in bearers)
        )
        decisive = len(digests) + (1 if has_bearer else 0)
        live = next((linked for linked in links if linked.outcome in _LIVE), None)
        ended = next((linked for linked in links[: decisive if live else None] if linked.outcome == "ended"), None)
        if ended is not None:
            return await self._refuse(user, ended)
        return None if live is None else self._link(user, live)

    async def _look_up_learnt(self, users: Collection[str], *, may_doubt: bool = False) -> Problem | None:
        """Look up the sessions that were given texts of the request, where no token with a name says which it is. One
        that has ended refuses the request. Two live ones link to neither. Sessions of other users than `users` do not
        count, unless there are none: a text that all clients send may have been given to one session so far. With
        `may_doubt` the response decides in doubt."""
        links = await learnt_links(self._services.sign_ins, self._digests)
        links = [link for link in links if not users or link[0] in users]
        for user, linked in links:
            if linked.outcome == "ended":
                if may_doubt and await self._is_doubtful():
                    self._doubt = (user, linked)
                    return None
                return await self._refuse(user, linked)
        live = [(user, linked) for user, linked in links if linked.outcome in _LIVE]
        return self._link(*live[0]) if len(live) == 1 else None

    def _link(self, user: str, live: TokenLookup) -> Problem | None:
        self._is(user, live.session_id)
        if live.outcome == "crowded":
            return Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=_CROWDED_SECONDS)
        return None

    async def _besides(self, new: NewTokens, response: SignInResponse) -> Besides:
        """Everything else that belongs to the session: also the refresh token of a request that linked to none, if it
        is the only text that may be one."""
        if self.owner.session_id is not None or self._sent is not None or not 200 <= response.status < 300:
            return new.besides
        sent = await learnt(self._services.verifier, self._request.learnable, new.claims)
        return msgspec.structs.replace(new.besides, presented=as_learnt(sent)) if len(sent) == 1 else new.besides

    async def after(self, response: SignInResponse) -> Problem | None:
        new = await self._new_tokens(response)
        if new is None:
            return await self._unread(response)
        claims = new.claims
        if self.owner.user != claims.user:
            # No token of this user linked the request, so what was learnt of them may not have been asked yet.
            self.owner.user = self.owner.session_id = None
            if (problem := await self._look_up_learnt({claims.user})) is not None:
                return problem
        besides = await self._besides(new, response)
        given = refresh_token(response.given.refresh_token)
        # The backend accepted a refresh token that was not known, and may accept it again.
        is_given = given is not None and self._sent is not None and self._sent.digest == given.digest
        unknown = None if self._is_known or is_given else self._sent
        linked = self.owner.session_id if claims.user == self.owner.user else None
        for token in [*([unknown] if unknown else []), given] if given or unknown else [None]:
            signed_in = await self._services.sign_ins.refresh(
                claims,
                self._request.client,
                exempt=self._services.exempt.covers(claims),
                refresh=token,
                linked=linked,
                besides=besides,
            )
            besides = NOTHING
            self._is(claims.user, signed_in.session_id)
            problem = counted(self._services.events, signed_in)
            if problem is not None:
                if signed_in.outcome != "full":
                    await self._record(Action.REFRESH_REFUSED, reason=problem.end_reason or problem.reason.code)
                return problem
            linked = signed_in.session_id
        return None

    async def _unread(self, response: SignInResponse) -> Problem | None:
        """Withhold a success in which nothing shows whose tokens it holds, if they may be those of an ended session."""
        is_doubtful = self._doubt is not None and 200 <= response.status < 400
        return await self._refuse(*self._doubt) if self._doubt is not None and is_doubtful else None


class RefreshAtLogin(Refresh):
    """A refresh at a path for logins. What it holds besides may be a user name and a password, so it counts as a login
    where it hands out no token."""

    def __init__(self, services: SignInServices, request: SignInRequest) -> None:
        super().__init__(services, request)
        self._login = Login(services, request)

    def under_way(self) -> AbstractContextManager[None]:
        return self._login.under_way()

    async def before(self) -> Problem | None:
        return await self._login.before() or await super().before()

    async def after(self, response: SignInResponse) -> Problem | None:
        if await self._new_tokens(response) is None:
            return await self._unread(response) or await self._login.after(response)
        return await super().after(response)


class Logout(_Observed):
    """A logout: its sessions end before the backend sees the request."""

    async def before(self) -> Problem | None:
        facts, services = self._request.facts, self._services
        sign_out = SignOut(
            gate=services.gate, verifier=services.verifier, sign_ins=services.sign_ins, manager=services.manager
        )
        named = await sign_out.named(facts, self._request.sent, strict=False)
        if isinstance(named, Problem) and named.reason in _LOGOUT_PROBLEMS:
            return named
        found = await self._found(named.user if isinstance(named, SignOutTargets) else None)
        if isinstance(found, Problem):
            return found
        for targets in (named, found):
            if isinstance(targets, SignOutTargets):
                self.owner.user = targets.user
                self.owner.session_id = await sign_out.end(targets, facts) or self.owner.session_id
        if isinstance(named, Problem) and found is None:
            await self._end_learnt()
        return None

    async def _found(self, user: str | None) -> SignOutTargets | Problem | None:
        """The sessions of the tokens that stand in places without a name: those of `user`, or of the one user that all
        of them name."""
        texts, sign_ins, verifier = self._request.token_like, self._services.sign_ins, self._services.verifier
        signed = [text for text in texts if text.count(".") == 2 and verifier.may_be_signed(text)]
        checked = [await verified(verifier, text, ignore_expiry=True) for text in signed[:_MOST_FOUND]]
        claims = [each for each in checked if each is not None]
        holders = [each for each in await asyncio.gather(*(holder_of(sign_ins, text) for text in texts)) if each]
        users = {*(each.user for each in claims), *(holder for holder, _ in holders)}
        if user is None and len(users) > 1:
            return Problem(reason=Reason.TOKEN_INVALID, why=TWO_USERS)
        user = user or (users.pop() if users else None)
        if user is None:
            return None
        return SignOutTargets(
            user=user,
            tokens=[each for each in claims if each.user == user],
            digests=list(dict.fromkeys(digest for holder, digest in holders if holder == user)),
        )

    async def _end_learnt(self) -> None:
        """End the session that was given a text of the request, if it stands where it stood then: elsewhere a text
        is no proof."""
        placed = [placed_digest(place_of(name), text) for name, text in self._request.learnable]
        links = await learnt_links(self._services.sign_ins, placed)
        if len({user for user, _ in links}) != 1:
            return
        for user, linked in links:
            if linked.outcome in _LIVE:
                actor = Actor.of(self._request.client, user)
                await self._services.manager.by(actor).log_out_session(user, linked.session_id)
                self._is(user, linked.session_id)

    async def after(self, response: SignInResponse) -> Problem | None:
        return None


def observation(kind: PathKind, services: SignInServices, request: SignInRequest) -> ObservedSignIn:
    """The object that follows a request for a login, refresh or logout path."""
    if kind is PathKind.LOGIN and request.refreshes:
        return RefreshAtLogin(services, request)
    return _KINDS[kind](services, request)


_KINDS: Final[Mapping[PathKind, Callable[[SignInServices, SignInRequest], ObservedSignIn]]] = {
    PathKind.LOGIN: Login,
    PathKind.REFRESH: Refresh,
    PathKind.LOGOUT: Logout,
}
