"""The settings by which requests are read, and by which an application or a backend gets to see them."""

from __future__ import annotations

import msgspec

from gatekeeper.auth.requests import RequestFacts
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import IdentityHeaders
from gatekeeper.http.origins import Origins
from gatekeeper.http.paths import PathTable
from gatekeeper.tokens.login_names import LoginNames
from gatekeeper.tokens.response_tokens import ResponseReader
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.strays import StrayPlaces
from gatekeeper.tokens.token_places import TokenPlaces
from gatekeeper.web.opaque import OpaqueBearers
from gatekeeper.web.request import IncomingRequest


class RequestRules(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that concern a request before and after its verdict.

    `forward_authorization`: an admitted client's token goes on; `cookie_transport`: Gatekeeper's own tokens are in
    cookies, and the refresh token among them never goes on.
    """

    paths: PathTable
    sources: TokenSources
    strays: StrayPlaces
    identity: IdentityHeaders
    trusted: TrustedProxies
    origins: Origins
    login_names: LoginNames
    opaque: OpaqueBearers = OpaqueBearers()
    refresh_places: TokenPlaces
    responses: ResponseReader
    forward_authorization: bool = True
    cookie_transport: bool = False

    def facts(self, request: IncomingRequest, *, own: bool) -> RequestFacts:
        """The facts for the gate. `own`: one of Gatekeeper's own operations, which a cookie alone must not trigger."""
        event_stream = not own and self.reads_query(request)
        return request.facts(self.origins, own=own, event_stream=event_stream)

    def reads_query(self, request: IncomingRequest) -> bool:
        """Return true where the token of an HTTP request may be in its query: a page that reads server-sent events can
        send no header."""
        return bool(request.query) and request.is_event_stream and self.sources.has_parameter(request.query)

    def address_of(self, request: IncomingRequest) -> str | None:
        """The address by which limits count this client, an IPv6 address as its /64; None where it may be that of a
        proxy in front, shared by all clients."""
        return self.trusted.counted_as(request.client.ip_address, request.peer)
