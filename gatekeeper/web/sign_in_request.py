"""Read a request for a login, refresh or logout path of the application, before it is forwarded.

The body is read up to a bound and replayed as it came. Which texts of the request the backend takes for what is not
known, so every text counts that may be the name of a user or a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from gatekeeper import messages
from gatekeeper.auth.requests import SignInRequest
from gatekeeper.errors import Reason
from gatekeeper.http.headers import Headers, get, get_all
from gatekeeper.http.paths import PathKind
from gatekeeper.http.types import Receive
from gatekeeper.models import Problem
from gatekeeper.tokens import body_search, credentials
from gatekeeper.tokens.body_fields import Field, Unsearchable, fields_of_body, fields_of_query
from gatekeeper.tokens.credentials import MAX_BODY_BYTES, Credentials
from gatekeeper.tokens.learnable import is_learnable
from gatekeeper.tokens.login_names import has_login_field, is_refresh_grant
from gatekeeper.tokens.response_tokens import REFRESH_COOKIE
from gatekeeper.tokens.token_places import FoundText, without_scheme
from gatekeeper.web.body import Replay, read_beginning
from gatekeeper.web.request import IncomingRequest
from gatekeeper.web.rules import RequestRules

_UNREADABLE: Final = Problem(
    reason=Reason.BODY_TOO_LARGE, detail="The body is too large, or compressed in an unknown way"
)
# A browser sends a few dozen candidates; each costs a look-up in the store.
_MOST_CANDIDATES: Final = 256
_MOST_CARRIED: Final = 4096
_TOKEN_HEADERS: Final = frozenset({b"authorization", b"cookie", b"x-access-token", b"x-auth-token"})


class _Found(msgspec.Struct, kw_only=True):
    """Results of searching a request: see `SignInRequest`. `lacks_proof`: no field of it is one of a login."""

    user_names: tuple[str, ...] = ()
    token_like: Sequence[str] = ()
    carried: Callable[[], Sequence[str] | None] | None = None
    presented: list[str] | None = None
    learnable: Sequence[FoundText] = ()
    refreshes: bool = False
    lacks_proof: bool = False


async def read_sign_in(
    rules: RequestRules, kind: PathKind, incoming: IncomingRequest, receive: Receive, *, counts_logins: bool
) -> tuple[SignInRequest, Replay] | Problem:
    """Read a request for a login, refresh or logout path. The `Replay` gives its body again.

    A refresh that cannot be searched is a `Problem`, and so is a login while `counts_logins`, or where nothing says
    that it is no refresh: it could hide the refresh token of an ended session, or the name of its user.
    """
    received_at = time.time()
    replay = await read_beginning(receive, MAX_BODY_BYTES)
    content = replay.content
    encoding = b",".join(get_all(incoming.headers, b"content-encoding"))
    try:
        found = _search(rules, kind, incoming, content, encoding)
    except Unsearchable:
        if kind is PathKind.REFRESH or (
            kind is PathKind.LOGIN and (counts_logins or _may_refresh(rules, incoming, content))
        ):
            return _UNREADABLE
        # What it carries is not known.
        found = _Found(carried=lambda: None)
    if found.lacks_proof and found.presented is None:
        return _UNREADABLE
    sent = _sent(rules, content, encoding, incoming.headers)
    if sent.user_name is None and found.user_names:
        sent = msgspec.structs.replace(sent, user_name=found.user_names[0])
    request = SignInRequest(
        facts=rules.facts(incoming, own=False),
        sent=sent,
        address=rules.address_of(incoming),
        request_id=incoming.request_id,
        received_at=received_at,
        user_names=found.user_names,
        token_like=found.token_like,
        carried=found.carried,
        presented=(found.presented or ()) if found.lacks_proof else (),
        learnable=found.learnable,
        refreshes=found.refreshes,
        language=messages.supported_language(sent.language) if sent.language else None,
    )
    return request, replay


def _may_refresh(rules: RequestRules, incoming: IncomingRequest, content: bytes) -> bool:
    """True for a request of a path for logins that cannot be searched, unless its beginning says that it is a login. At
    a path for both, what cannot be searched may say the contrary."""
    if rules.paths.has_kind(PathKind.REFRESH, incoming.method, incoming.path):
        return True
    try:
        fields = [
            *fields_of_body(content[:MAX_BODY_BYTES], get_all(incoming.headers, b"content-type")),
            *fields_of_query(incoming.query),
        ]
        names = rules.login_names.find(fields)
    except Unsearchable:
        return True
    return is_refresh_grant(fields) or not (names or has_login_field(fields))


def _search(rules: RequestRules, kind: PathKind, incoming: IncomingRequest, content: bytes, encoding: bytes) -> _Found:
    """Search the request for all that its kind of path asks for. Raises `Unsearchable`."""
    texts = body_search.decodings(content, encoding)
    kinds = get_all(incoming.headers, b"content-type")
    fields = [field for text in texts for field in fields_of_body(text, kinds)]
    fields += fields_of_query(incoming.query)
    found = _Found(refreshes=kind is PathKind.REFRESH)
    if kind is PathKind.LOGIN:
        found.user_names = rules.login_names.find(fields)
        found.refreshes = is_refresh_grant(fields)
        found.lacks_proof = not (found.refreshes or found.user_names or has_login_field(fields))
    searched = [*texts, incoming.query]
    if found.refreshes:
        found.learnable = _learnable(rules, fields, incoming.headers)
        found.token_like = body_search.find_token_candidates(searched, fields, incoming.headers, limit=_MOST_CANDIDATES)
        return found
    if kind is PathKind.LOGOUT:
        found.learnable = _learnable(rules, fields, incoming.headers)
        carrying = [pair for pair in incoming.headers if pair[0] in _TOKEN_HEADERS]
        found.token_like = body_search.find_token_candidates(
            searched, fields, carrying, limit=_MOST_CANDIDATES, strict=False
        )
        return found
    # Not before a token is handed out: most failures need it not.
    found.carried = partial(_carried, searched, fields, incoming.headers)
    if found.lacks_proof:
        bearer = [pair for pair in incoming.headers if pair[0] == b"authorization"]
        with suppress(Unsearchable):
            found.presented = body_search.find_token_candidates(
                searched, fields, bearer, limit=_MOST_CANDIDATES, strict=False
            )
    return found


def _carried(texts: Sequence[bytes], fields: Sequence[Field], headers: Headers) -> list[str] | None:
    """Every text of a request that may be a token, None for too many. They are compared, and never looked up."""
    try:
        return body_search.find_token_candidates(texts, fields, headers, limit=_MOST_CARRIED, strict=False)
    except Unsearchable:
        return None


def _sent(rules: RequestRules, content: bytes, encoding: bytes, headers: Headers) -> Credentials:
    """The credentials in the places that are read for them, those of the settings first."""
    plain = credentials.inflate(content, encoding)
    document = credentials.document_of_request(plain, get(headers, b"content-type") or b"") if plain else None
    sent = credentials.from_document(document)
    jar: dict[bytes, str] = {}
    for name, value in credentials.request_cookies(headers):
        # Of two different ones it is not known which one the backend reads.
        jar[name] = value if jar.setdefault(name, value) == value else ""
    named = next(rules.refresh_places.find(document, headers, jar), None)
    refresh = without_scheme(named.text) if named is not None else sent.refresh_token or jar.get(REFRESH_COOKIE)
    return msgspec.structs.replace(sent, refresh_token=refresh or None)


def _learnable(rules: RequestRules, fields: Sequence[Field], headers: Headers) -> list[FoundText]:
    """The texts that may be a refresh token: cookies, and members of the body that are called so."""
    access = {name.encode() for name in rules.sources.cookie_names}
    found = [(path[-1], value, False) for path, value in fields if path and "refresh" in path[-1].lower()]
    found += [
        (name.decode("latin-1"), value, True)
        for name, value in credentials.request_cookies(headers)
        if name not in access
    ]
    texts: dict[str, FoundText] = {}
    for name, text, is_cookie in found:
        if is_learnable(name, text, cookie=is_cookie):
            texts.setdefault(text, FoundText(name, text))
    return list(texts.values())
