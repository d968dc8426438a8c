"""Serves the endpoints of `dialects/endpoints.py`: from a matched endpoint to an outcome."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_plus

from gatekeeper import messages
from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.oauth import BackChannelLogout, IntrospectionClients, TokenEndpoints
from gatekeeper.auth.requests import IssuedTokens, SessionOwner, SignInRequest
from gatekeeper.dialects.base import Answer, Wording
from gatekeeper.dialects.endpoints import UNKNOWN_CLIENT, Endpoint, LoggedOut, Nothing, Serves, TokenPair, by_pattern
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.http.client_address import NO_ADDRESS
from gatekeeper.http.headers import HeaderList, Headers, get, get_all
from gatekeeper.http.paths import RouteMatch
from gatekeeper.http.types import Receive
from gatekeeper.models import Problem
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.tokens.body_fields import Unsearchable, fields_of_document, fields_of_query
from gatekeeper.tokens.credentials import Credentials, user_name
from gatekeeper.tokens.login_names import is_refresh_grant
from gatekeeper.web import cookies
from gatekeeper.web.body import read_form, read_object
from gatekeeper.web.outcome import Refused, Served, conclude
from gatekeeper.web.request import IncomingRequest
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules

_BASIC: Final[HeaderList] = [(b"www-authenticate", b'Basic realm="gatekeeper", charset="UTF-8"')]


class Endpoints:
    """Serves sign-ins and the OAuth endpoints. `issued`, `key_set` and `backchannel` are None where their endpoints are
    off. Raises `StoreUnavailable`, `KeysUnavailable`, `UpstreamUnavailable` and `UpstreamTimeout`."""

    def __init__(
        self,
        rules: RequestRules,
        responder: Responder,
        *,
        issued: IssuedSignIn | None,
        key_set: Any,
        token_endpoints: TokenEndpoints,
        clients: IntrospectionClients,
        backchannel: BackChannelLogout | None,
    ) -> None:
        self._rules = rules
        self._responder = responder
        self._issued = issued
        self._key_set = key_set
        self._token_endpoints = token_endpoints
        self._clients = clients
        self._backchannel = backchannel

    async def serve(
        self, match: RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served:
        """Serve one request to an endpoint that the path table found."""
        endpoint = match.route.target
        assert isinstance(endpoint, Endpoint)  # noqa: S101 - the pipeline brings no other target here
        record.route = endpoint.path
        language = self._responder.language_of(incoming)
        members: Mapping[str, Any] | Problem = {}
        if endpoint.serves is not Serves.KEYS:
            members = await (read_form if endpoint.form else read_object)(receive, incoming.headers)
        if isinstance(members, Problem):
            return self._refused(endpoint, record, members, language)
        asked = members.get("language")
        language = (messages.supported_language(asked) if isinstance(asked, str) else None) or language
        owner = SessionOwner()
        if endpoint.serves is Serves.LOGIN and _asks_for_refresh(incoming, members):
            endpoint = by_pattern(Serves.REFRESH, endpoint.path)
        if endpoint.form:
            outcome = await self._form(endpoint, incoming, members, owner)
        else:
            outcome = await self._tokens(endpoint, incoming, members, owner, language)
        record.user_id, record.session_id = owner.user, owner.session_id
        if isinstance(outcome, Problem):
            # A user name and a password are no token (RFC 6750 section 3).
            return self._refused(endpoint, record, outcome, language, token_sent=endpoint.serves is not Serves.LOGIN)
        if outcome.response is not None and outcome.response.status >= 400:
            conclude(record, "deny", Reason.INVALID_CREDENTIALS)
        else:
            conclude(record, "allow")
        return outcome

    @staticmethod
    def _refused(
        endpoint: Endpoint, record: RequestRecord, problem: Problem, language: str, *, token_sent: bool = False
    ) -> Refused:
        conclude(record, "error" if problem.reason.status >= 500 else "deny", problem.reason)
        record.why = problem.why
        token_sent = token_sent and problem.reason is not Reason.TOKEN_MISSING
        return Refused(problem, endpoint.dialect, None, token_sent, language)

    # Tokens of Gatekeeper's own

    async def _tokens(
        self,
        endpoint: Endpoint,
        incoming: IncomingRequest,
        members: Mapping[str, Any],
        owner: SessionOwner,
        language: str,
    ) -> Served | Problem:
        issuing = self._issued
        if issuing is None or endpoint.serves is Serves.KEYS:
            return Served(Answer(body=self._key_set))
        request = self._sign_in_request(endpoint, incoming, members)
        if isinstance(request, Problem):
            return request
        if endpoint.serves is Serves.LOGIN:
            return self._served_tokens(
                await issuing.login(request, members, owner, headers=self._client_headers(incoming))
            )
        if endpoint.serves is Serves.REFRESH:
            return self._served_tokens(await issuing.refresh(request, owner))
        problem = await issuing.logout(request, owner)
        if problem is not None:
            return problem
        body = LoggedOut(messages.translate("Logged out successfully", language))
        return Served(Answer(body=body), cookies.clearing() if self._rules.cookie_transport else ())

    def _sign_in_request(
        self, endpoint: Endpoint, incoming: IncomingRequest, members: Mapping[str, Any]
    ) -> SignInRequest | Problem:
        """Read the credentials of the request; a member that is present must be a string."""
        for name in ("access_token", "refresh_token"):
            if not isinstance(members.get(name, ""), str):
                return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be a string")
        facts = self._rules.facts(incoming, own=True)
        refresh = members.get("refresh_token")
        if refresh is None and self._rules.cookie_transport:
            try:
                refresh = cookies.refresh_token(incoming.headers)
            except TokenRejected:
                return Problem(reason=Reason.REFRESH_TOKEN_INVALID)
            if refresh is not None and not facts.cookie_allowed and endpoint.serves is not Serves.LOGIN:
                return Problem(reason=Reason.ORIGIN_NOT_ALLOWED)
        elif refresh is None and endpoint.serves is Serves.REFRESH:
            return Problem(reason=Reason.BAD_REQUEST, detail="refresh_token must be a string")
        access = members.get("access_token") if endpoint.serves is Serves.LOGOUT else None
        try:
            names = self._user_names(incoming, members) if endpoint.serves is Serves.LOGIN else ()
        except Unsearchable:
            return Problem(reason=Reason.BODY_TOO_LARGE, detail="The body names too many users")
        return SignInRequest(
            facts=facts,
            sent=Credentials(access_token=access, refresh_token=refresh, user_name=user_name(members)),
            user_names=names,
            address=self._rules.address_of(incoming),
            request_id=incoming.request_id,
        )

    def _user_names(self, incoming: IncomingRequest, members: Mapping[str, Any]) -> tuple[str, ...]:
        return self._rules.login_names.find([*fields_of_document(members), *fields_of_query(incoming.query)])

    def _served_tokens(self, pair: IssuedTokens | Problem) -> Served | Problem:
        if isinstance(pair, Problem):
            return pair
        if self._rules.cookie_transport:
            body = TokenPair(token_type="bearer", expires_in=pair.expires_in)  # noqa: S106 - a kind, no token
            return Served(Answer(body=body), cookies.setting(pair))
        return Served(
            Answer(
                body=TokenPair(
                    access_token=pair.access_token,
                    refresh_token=pair.refresh_token,
                    token_type="bearer",  # noqa: S106 - a kind, no token
                    expires_in=pair.expires_in,
                )
            )
        )

    @staticmethod
    def _client_headers(incoming: IncomingRequest) -> list[tuple[str, str]]:
        """The headers about the client for the backend that checks a password."""
        headers = [("x-request-id", incoming.request_id)]
        if incoming.client.ip_address not in NO_ADDRESS:
            headers.append(("x-forwarded-for", incoming.client.ip_address))
        # As it was sent: each character is an octet.
        user_agent = (get(incoming.headers, b"user-agent") or b"gatekeeper").decode("latin-1")
        return [*headers, ("user-agent", user_agent)]

    # OAuth and OpenID Connect

    async def _form(
        self, endpoint: Endpoint, incoming: IncomingRequest, fields: Mapping[str, Any], owner: SessionOwner
    ) -> Served | Problem:
        name = "logout_token" if endpoint.serves is Serves.BACKCHANNEL else "token"
        if endpoint.serves is not Serves.BACKCHANNEL and not self._is_client(incoming.headers, fields):
            problem = Problem(reason=Reason.INVALID_CREDENTIALS, detail=UNKNOWN_CLIENT)
            wording = Wording(request_id=incoming.request_id, now=0, language="en")
            return Served(Answer(status=401, body=endpoint.dialect.word(problem, wording)), _BASIC)
        values = fields.get(name, ())
        if len(values) != 1 or not values[0]:
            return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be given once")
        (token,) = values
        if endpoint.serves is Serves.BACKCHANNEL:
            assert self._backchannel is not None  # noqa: S101 - or there is no such route
            problem_or_none = await self._backchannel.log_out(token, client=incoming.client, owner=owner)
            return problem_or_none or Served(Answer(body=Nothing()))
        if endpoint.serves is Serves.INTROSPECT:
            return Served(Answer(body=await self._token_endpoints.introspect(token)))
        unrevoked = await self._token_endpoints.revoke(token, incoming.client, owner)
        return unrevoked or Served(Answer(body=Nothing()))

    def _is_client(self, headers: Headers, fields: Mapping[str, Any]) -> bool:
        """Authenticate the client by Basic or by the body, not both (RFC 6749 section 2.3.1)."""
        authorization = get_all(headers, b"authorization")
        ids, secrets = fields.get("client_id", ()), fields.get("client_secret", ())
        if authorization:
            pair = _basic(authorization[0]) if len(authorization) == 1 and not secrets else None
        else:
            pair = (ids[0], secrets[0]) if len(ids) == len(secrets) == 1 else None
        return pair is not None and self._clients.knows(*pair)


def _basic(authorization: bytes) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return None
    # RFC 6749 section 2.3.1: both are form-encoded before.
    return (unquote_plus(name), unquote_plus(secret)) if colon else None


def _asks_for_refresh(incoming: IncomingRequest, members: Mapping[str, Any]) -> bool:
    """True for a request to a path for logins that says that it is a refresh (rule 5.14)."""
    try:
        return is_refresh_grant([*fields_of_document(members), *fields_of_query(incoming.query)])
    except Unsearchable:
        return False
