"""Access tokens that a backend renews on any response, not only at its refresh path (rule 5.16)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from gatekeeper.errors import KeysUnavailable, StoreUnavailable, TokenRejected
from gatekeeper.http.headers import Headers
from gatekeeper.models import Claims
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.tokens import credentials
from gatekeeper.tokens.token_places import without_scheme
from gatekeeper.tokens.verifier import Verifier

# A response hands out one; each costs the verification of a signature.
_MOST_TEXTS: Final = 4


class Renewals:
    """Finds such tokens in the heads of responses, in `Authorization` and in the cookies that requests carry tokens in,
    and gives them to the session of the request. `on_failure` gets what keeps a token from that: the response goes on,
    and the next request decides."""

    def __init__(
        self,
        verifier: Verifier,
        sign_ins: SignIns,
        *,
        cookies: Collection[str],
        on_failure: Callable[[StoreUnavailable | KeysUnavailable], None],
    ) -> None:
        self._verifier = verifier
        self._sign_ins = sign_ins
        self._cookies = tuple(name.encode() for name in cookies)
        self._on_failure = on_failure

    def __repr__(self) -> str:
        return f"<Renewals in {len(self._cookies)} cookies>"

    def may_be_in(self, status: int, headers: Headers) -> bool:
        """True for a response that may hand out a token."""
        if not 200 <= status < 400:
            return False
        for name, value in headers:
            # Most names have another length.
            if len(name) == 10:
                if name.lower() == b"set-cookie" and value.partition(b"=")[0].strip(b" \t") in self._cookies:
                    return True
            elif len(name) == 13 and name.lower() == b"authorization":
                return True
        return False

    def of(
        self, requesting: Claims, session_id: int, *, sent: Headers, target: bytes
    ) -> Callable[[int, Headers], Awaitable[None]]:
        """Return what is to be called with status and head of a response before it goes on. `sent` are the
        headers of the request, `target` its target or query."""

        async def before_head(status: int, headers: Headers) -> None:
            if self.may_be_in(status, headers):
                await self.join(requesting, session_id, headers, sent=sent, target=target)

        return before_head

    async def join(
        self, requesting: Claims, session_id: int, headers: Headers, *, sent: Headers, target: bytes
    ) -> None:
        """Give the tokens of a response to the session of the request that `requesting` authenticated: those of the
        same user that are not another sign-in's, and that the request did not bring itself. Raises nothing."""
        for text in self._texts(headers):
            try:
                claims = await self._verifier.verify(text, ignore_start=True)
                if self._is_renewed(requesting, claims) and not _brought(text, sent, target):
                    await self._sign_ins.renew(claims, session_id)
            except TokenRejected:
                continue
            except (StoreUnavailable, KeysUnavailable) as error:
                self._on_failure(error)
                return

    def _texts(self, headers: Headers) -> Sequence[str]:
        jar = credentials.set_cookies(headers)
        texts = [jar[name].value for name in self._cookies if name in jar]
        for name, value in headers:
            if len(name) == 13 and name.lower() == b"authorization":
                # Of whatever scheme.
                texts.append(value.strip(b" \t").rpartition(b" ")[2].decode("latin-1"))
        return list(dict.fromkeys(map(without_scheme, texts)))[:_MOST_TEXTS]

    @staticmethod
    def _is_renewed(requesting: Claims, claims: Claims) -> bool:
        if claims.user != requesting.user or claims.reference == requesting.reference:
            return False
        return "sid" not in claims.claims or claims.claims["sid"] == requesting.claims.get("sid")


def _brought(token: str, sent: Headers, target: bytes) -> bool:
    """Return true where a request holds this JWT, however its signature is written: a response that repeats what it was
    sent hands out nothing."""
    payload = token.split(".")[1].encode()
    values = [value for _, value in sent]
    return any(
        payload in value or (b"%" in value and payload in unquote_to_bytes(value)) for value in [*values, target]
    )
