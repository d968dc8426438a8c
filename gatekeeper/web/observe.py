"""Logins, refreshes and logouts on their way through: what is read of a request and of its answer, and nothing else.

A request body is read before it is forwarded, and an answer that may hold tokens is held until they are known, both
up to a bound; what is longer, or of another kind, passes as it comes. What passes is what came, message by message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gatekeeper import messages
from gatekeeper.auth.observed_sign_in import ObservedSignIn, SignInRequest, SignInResponse, observation
from gatekeeper.errors import KeysUnavailable, Reason, StoreUnavailable, TokenRejected
from gatekeeper.http.headers import Headers, get
from gatekeeper.http.paths import PathKind
from gatekeeper.http.types import Message, Receive, Send
from gatekeeper.models import Problem
from gatekeeper.runtime import Engine
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.tokens import body_search, credentials
from gatekeeper.tokens.credentials import MAX_BODY_BYTES, Credentials
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.web.outcome import conclude, conclude_failed, identify_as
from gatekeeper.web.request import IncomingRequest

REFRESH_COOKIE: Final = "refresh_token"

_refresh_cookie: Final = TokenSources([f"cookie:{REFRESH_COOKIE}"])
_UNREADABLE: Final = Problem(
    reason=Reason.BODY_TOO_LARGE, detail="The body is too large, or compressed in an unknown way"
)
# Headers of a browser hold a few dozen; each costs the store a look.
_MOST_CANDIDATES: Final = 256
_ENCODINGS: Final = frozenset({b"", b"identity", b"gzip", b"x-gzip", b"deflate", b"br"})


async def observe(
    engine: Engine, kind: PathKind, incoming: IncomingRequest, receive: Receive
) -> tuple[ObservedSignIn, SignInRequest, Receive] | Problem:
    """Reads a request for a login, refresh or logout path. The `Receive` gives it once more.

    A refresh, and a login while failures are counted, that cannot be read is a `Problem`: it could hide the refresh
    token of a session that is over, or whose login it is.
    """
    content, again = await _body(receive)
    encoding = get(incoming.headers, b"content-encoding") or b""
    user_names: tuple[str, ...] = ()
    token_like: list[str] = []
    try:
        texts = body_search.decodings(content, encoding)
        if kind is PathKind.LOGIN:
            user_names = body_search.find_user_names(texts)
        elif kind is PathKind.REFRESH:
            around = [incoming.query, *(value for _, value in incoming.headers)]
            token_like = body_search.find_token_candidates([*texts, *around], limit=_MOST_CANDIDATES)
    except body_search.Unsearchable:
        if kind is PathKind.REFRESH or (kind is PathKind.LOGIN and engine.parts.attempts is not None):
            return Problem(
                reason=Reason.BODY_TOO_LARGE, detail="The body is too large, or compressed in an unknown way"
            )
    sent = _sent(content, encoding, incoming.headers)
    facts = incoming.facts(engine.origins, own=kind is PathKind.LOGOUT)
    if sent.refresh_token is None and (kind is not PathKind.LOGOUT or facts.cookie_allowed):
        sent = msgspec.structs.replace(sent, refresh_token=_cookie(incoming.headers))
    visit = SignInRequest(
        facts=facts,
        sent=sent,
        address=engine.address_of(incoming.client.ip_address, incoming.peer),
        request_id=incoming.request_id,
        user_names=tuple(dict.fromkeys([*([sent.user_name] if sent.user_name else []), *user_names])),
        token_like=token_like,
        language=messages.known(sent.language) if sent.language else None,
    )
    return observation(kind, engine.parts, visit), visit, again


def _sent(content: bytes, encoding: bytes, headers: Headers) -> Credentials:
    """The credentials that stand where they should."""
    plain = credentials.inflate(content, encoding)
    return credentials.from_request(plain, get(headers, b"content-type") or b"") if plain else Credentials()


def _cookie(headers: Headers) -> str | None:
    try:
        found = _refresh_cookie.find(headers)
    except TokenRejected:
        return None
    return found.token if found else None


async def _body(receive: Receive) -> tuple[bytes, Receive]:
    """The body, or the beginning of one that is longer than what is read; and all of it again."""
    taken: deque[Message] = deque()
    content = bytearray()
    more = True
    while more and len(content) <= MAX_BODY_BYTES:
        message = await receive()
        taken.append(message)
        content += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)

    async def again() -> Message:
        return taken.popleft() if taken else await receive()

    return bytes(content), again


class ResponseObserver:
    """The `send` of a request whose answer may hold tokens.

    `answer` sends a problem in the place of what is held; after that, whatever the application still says is dropped.
    """

    def __init__(
        self,
        send: Send,
        observation: ObservedSignIn,
        *,
        engine: Engine,
        record: RequestRecord,
        answer: Callable[[Problem], Awaitable[None]],
    ) -> None:
        self._send = send
        self.observation = observation
        self._exchange = record
        self._engine = engine
        self._answer = answer
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
            # ASGI has an iterable, which may be one that can be read once.
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

    async def broken_off(self) -> bool:
        """The application has ended before its answer did: what is held goes out as far as it came. Whether the client
        is to hear of it: not where it got another answer."""
        if self._begun and not (self._passes or self.withheld):
            await self._settle(bytes(self._content))
        return not self.withheld

    async def _settle(self, content: bytes) -> None:
        """Everything that will be known of the answer is known."""
        start = self._held[0]
        problem = await self._judged(SignInResponse(start["status"], self._given(start, content)))
        if problem is not None:
            self.withheld = True
            await self._answer(problem)
            return
        self._passes = True
        for message in self._held:
            await self._send(message)
        self._held.clear()

    async def _judged(self, answered: SignInResponse) -> Problem | None:
        try:
            problem = await self.observation.after(answered)
            if problem is not None:
                conclude(self._exchange, "deny", problem.reason)
        except (StoreUnavailable, KeysUnavailable) as error:
            self._engine.telemetry.failed(error)
            conclude_failed(self._exchange, error)
            problem = Problem(reason=error.reason)
        identify_as(self._exchange, self.observation.who)
        return problem

    def _given(self, start: Message, content: bytes) -> Credentials:
        if not 200 <= start["status"] < 400:
            return Credentials()
        headers = [(name.lower(), value) for name, value in start.get("headers", ())]
        found = Credentials()
        if content:
            inflated = credentials.inflate(content, get(headers, b"content-encoding") or b"")
            found = credentials.from_response(inflated) if inflated is not None else found
        jar = credentials.set_cookies(headers)
        from_cookies = (jar[name.encode()] for name in self._engine.sources.cookie_names if name.encode() in jar)
        return Credentials(
            access_token=found.access_token or next(from_cookies, None),
            refresh_token=found.refresh_token or jar.get(REFRESH_COOKIE.encode()),
        )


def _may_hold_tokens(start: Message) -> bool:
    """Whether the body is worth waiting for."""
    headers = [(name.lower(), value) for name, value in start.get("headers", ())]
    length = get(headers, b"content-length")
    return (
        200 <= start["status"] < 300
        and credentials.is_json(get(headers, b"content-type") or b"")
        and (get(headers, b"content-encoding") or b"").strip().lower() in _ENCODINGS
        and (length is None or (length.isdigit() and int(length[:20]) <= MAX_BODY_BYTES))
    )


async def run(
    app: Callable[[Any, Receive, Send], Awaitable[None]], scope: Any, receive: Receive, watch: ResponseObserver
) -> None:
    """The application behind, its answer watched."""
    left = False

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left |= message["type"] == "http.disconnect"
        return message

    try:
        with watch.observation.under_way():
            await app(scope, receiving, watch)
    except Exception:
        # What has been answered is answered: how the rest of the backend's answer fares is nobody's business any more.
        if await watch.broken_off():
            raise
    else:
        if not left:
            await watch.broken_off()
