"""Logins, refreshes and logouts of an application, read on their way through.

A request body is read before it is forwarded, and a response that may hold tokens is held until it has been read, both
up to a bound; what is longer, or of another media type, passes unread. Messages pass unchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from gatekeeper import messages
from gatekeeper.auth.requests import ObservedSignIn, SignInRequest, SignInResponse
from gatekeeper.errors import KeysUnavailable, Reason, StoreUnavailable, TokenRejected
from gatekeeper.http.headers import Headers, get, get_all
from gatekeeper.http.paths import PathKind
from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.models import Problem
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens import body_search, credentials
from gatekeeper.tokens.body_fields import Unsearchable, fields_of_body, fields_of_query
from gatekeeper.tokens.credentials import MAX_BODY_BYTES, Credentials
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.web.outcome import conclude, conclude_failed, identify_as
from gatekeeper.web.request import IncomingRequest
from gatekeeper.web.rules import RequestRules

REFRESH_COOKIE: Final = "refresh_token"

_refresh_cookie: Final = TokenSources([f"cookie:{REFRESH_COOKIE}"])
_UNREADABLE: Final = Problem(
    reason=Reason.BODY_TOO_LARGE, detail="The body is too large, or compressed in an unknown way"
)
# A browser sends a few dozen candidates; each costs a look-up in the store.
_MOST_CANDIDATES: Final = 256
_ENCODINGS: Final = frozenset({b"", b"identity", b"gzip", b"x-gzip", b"deflate", b"br"})


async def read_sign_in(
    rules: RequestRules, kind: PathKind, incoming: IncomingRequest, receive: Receive, *, counts_logins: bool
) -> tuple[SignInRequest, Receive] | Problem:
    """Read a request for a login, refresh or logout path. The `Receive` replays its body.

    A refresh that cannot be read is a `Problem`, and so is a login while `counts_logins`: it could hide the refresh
    token of an ended session, or the name of its user.
    """
    content, replay = await _body(receive)
    encoding = b",".join(get_all(incoming.headers, b"content-encoding"))
    kinds = get_all(incoming.headers, b"content-type")
    user_names: tuple[str, ...] = ()
    token_like: list[str] = []
    try:
        if kind is not PathKind.LOGOUT:
            texts = body_search.decodings(content, encoding)
            fields = [field for text in texts for field in fields_of_body(text, kinds)]
            fields += fields_of_query(incoming.query)
            if kind is PathKind.LOGIN:
                user_names = rules.login_names.find(fields)
            else:
                token_like = body_search.find_token_candidates(
                    [*texts, incoming.query], fields, incoming.headers, limit=_MOST_CANDIDATES
                )
    except Unsearchable:
        if kind is PathKind.REFRESH or counts_logins:
            return _UNREADABLE
    sent = _sent(content, encoding, incoming.headers)
    facts = rules.facts(incoming, own=False)
    if sent.refresh_token is None:
        sent = msgspec.structs.replace(sent, refresh_token=_cookie(incoming.headers))
    if sent.user_name is None and user_names:
        sent = msgspec.structs.replace(sent, user_name=user_names[0])
    request = SignInRequest(
        facts=facts,
        sent=sent,
        address=rules.address_of(incoming),
        request_id=incoming.request_id,
        user_names=user_names,
        token_like=token_like,
        language=messages.supported_language(sent.language) if sent.language else None,
    )
    return request, replay


def _sent(content: bytes, encoding: bytes, headers: Headers) -> Credentials:
    """The credentials under the members and cookies that are read for them."""
    plain = credentials.inflate(content, encoding)
    return credentials.from_request(plain, get(headers, b"content-type") or b"") if plain else Credentials()


def _cookie(headers: Headers) -> str | None:
    try:
        found = _refresh_cookie.find(headers)
    except TokenRejected:
        return None
    return found.token if found and not found.twins else None


async def _body(receive: Receive) -> tuple[bytes, Receive]:
    """Read the body, or the beginning of one over the bound; the `Receive` replays all of it."""
    taken: deque[Message] = deque()
    content = bytearray()
    more = True
    while more and len(content) <= MAX_BODY_BYTES:
        message = await receive()
        taken.append(message)
        content += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)

    async def replay() -> Message:
        return taken.popleft() if taken else await receive()

    return bytes(content), replay


class ResponseObserver:
    """The `send` of a request whose response may hold tokens.

    `refuse` sends a problem in place of the response that is held; the rest of that response is then dropped.
    """

    def __init__(
        self,
        send: Send,
        observation: ObservedSignIn,
        *,
        telemetry: Telemetry,
        cookie_names: Sequence[str],
        record: RequestRecord,
        refuse: Callable[[Problem], Awaitable[None]],
    ) -> None:
        self._send = send
        self.observation = observation
        self._record = record
        self._telemetry = telemetry
        self._cookie_names = cookie_names
        self._refuse = refuse
        self._held: list[Message] = []
        self._content = bytearray()
        self._begun = False
        self._passes = False
        self.withheld = False

    async def __call__(self, message: Message) -> None:
        if self.withheld:
            return
        begins = message["type"] == "http.response.start"
        if begins:
            # An iterable by the ASGI specification, which may be one that can be read once.
            message = {**message, "headers": list(message.get("headers", ()))}
        if self._passes or not (self._begun or begins):
            await self._send(message)
            return
        self._held.append(message)
        if begins:
            self._begun = True
            if not _may_hold_tokens(message):
                await self._settle(b"")
        elif message["type"] == "http.response.body":
            self._content += message.get("body", b"")
            if len(self._content) > MAX_BODY_BYTES:
                await self._settle(b"")
            elif not message.get("more_body", False):
                await self._settle(bytes(self._content))
        else:
            await self._settle(b"")

    async def application_ended(self) -> bool:
        """Send on what is held of a response that the application never finished. False where the client got a refusal
        instead, and so is not to hear of the failure."""
        if self._begun and not (self._passes or self.withheld):
            await self._settle(bytes(self._content))
        return not self.withheld

    async def _settle(self, content: bytes) -> None:
        """Judge the response, of which no more will be read, and send it on or refuse it."""
        start = self._held[0]
        problem = await self._judge(SignInResponse(start["status"], self._credentials(start, content)))
        if problem is not None:
            self.withheld = True
            await self._refuse(problem)
            return
        self._passes = True
        for message in self._held:
            await self._send(message)
        self._held.clear()

    async def _judge(self, response: SignInResponse) -> Problem | None:
        try:
            problem = await self.observation.after(response)
            if problem is not None:
                conclude(self._record, "deny", problem.reason)
        except (StoreUnavailable, KeysUnavailable) as error:
            self._telemetry.failed(error)
            conclude_failed(self._record, error)
            problem = Problem(reason=error.reason)
        identify_as(self._record, self.observation.owner)
        return problem

    def _credentials(self, start: Message, content: bytes) -> Credentials:
        if not 200 <= start["status"] < 400:
            return Credentials()
        headers = [(name.lower(), value) for name, value in start.get("headers", ())]
        found = Credentials()
        if content:
            inflated = credentials.inflate(content, get(headers, b"content-encoding") or b"")
            found = credentials.from_response(inflated) if inflated is not None else found
        jar = credentials.set_cookies(headers)
        from_cookies = (jar[name.encode()] for name in self._cookie_names if name.encode() in jar)
        return Credentials(
            access_token=found.access_token or next(from_cookies, None),
            refresh_token=found.refresh_token or jar.get(REFRESH_COOKIE.encode()),
        )


def _may_hold_tokens(start: Message) -> bool:
    headers = [(name.lower(), value) for name, value in start.get("headers", ())]
    length = get(headers, b"content-length")
    return (
        200 <= start["status"] < 300
        and credentials.is_json(get(headers, b"content-type") or b"")
        and (get(headers, b"content-encoding") or b"").strip().lower() in _ENCODINGS
        and (length is None or (length.isdigit() and int(length[:20]) <= MAX_BODY_BYTES))
    )


async def run(app: ASGIApp, scope: Scope, receive: Receive, observer: ResponseObserver) -> None:
    """Run the application behind, its response observed."""
    left = False

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left |= message["type"] == "http.disconnect"
        return message

    try:
        with observer.observation.under_way():
            await app(scope, receiving, observer)
    except Exception:
        # A client that got a refusal has its response: a failure of the application's own concerns it no more.
        if await observer.application_ended():
            raise
    else:
        if not left:
            await observer.application_ended()
