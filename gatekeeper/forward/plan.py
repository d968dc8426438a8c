"""The direct route: plain requests go from the client's connection to the backend's and back by callbacks alone.

Most requests to an API have a token that was verified before and an active session. They need a session check and a
forwarding, and neither needs a task or an ASGI message:

    server → DirectRoute → Gate.recognised → Gate.send_for ─ touched → Http1Connection → DirectForward → server

Clients repeat the same headers, so the header lines for the backend are prepared once for each header section that the
request parser caches (`Plan`). The token's times, its key and its session are still checked for every request.

The application serves all other requests. If the session was checked already, it gets the result in
`scope["gatekeeper.checked"]`, so there is one check and one round trip to the store, whichever way a request takes.
"""

from __future__ import annotations

from typing import Final

from gatekeeper.forward.direct import DirectForward
from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.forward.prepared import Plan
from gatekeeper.forward.request_lines import accepts_trailers, serialized
from gatekeeper.http.headers import REQUEST_ID, get, request_id
from gatekeeper.http.method_override import overrides_method, query_overrides_method
from gatekeeper.http.paths import BadPath, PathKind
from gatekeeper.http.request_head import HeaderSection
from gatekeeper.http.request_writer import RequestNotForwardable
from gatekeeper.http.spelling import USUAL
from gatekeeper.runtime import Runtime
from gatekeeper.server import Exchange

_REQUEST_ID_LINE: Final = b"\r\n%b: \r\n" % USUAL[REQUEST_ID]
# As many as the request parser caches header sections.
_MAX_PLANS: Final = 2048
_INDIRECT_METHODS: Final = frozenset({"OPTIONS", "TRACE", "CONNECT"})
_INDIRECT_HEADERS: Final = frozenset({b"upgrade"})


class DirectRoute:
    """Takes a request whose head has arrived. Returns True if it will be forwarded directly, False if the
    application has to serve it."""

    def __init__(self, services: DirectServices, runtime: Runtime) -> None:
        self._services = services
        self._runtime = runtime
        self._plans: dict[HeaderSection, tuple[str | None, Plan | None]] = {}

    def __repr__(self) -> str:
        return f"<DirectRoute to {self._services.upstream!r}>"

    def __call__(self, exchange: Exchange) -> bool:
        services, head, rules = self._services, exchange.head, self._services.rules
        if head.method in _INDIRECT_METHODS or not self._runtime.started or rules.cookie_transport:
            return False
        if exchange.is_full:
            # A client that pipelines requests and reads no response has to wait: the application's `send` does that.
            return False
        path, _, query = head.target.partition(b"?")
        if query and (
            query_overrides_method(query) or rules.sources.has_parameter(query) or services.strays.in_query(query)
        ):
            return False
        try:
            if rules.paths.classify(head.method, path) is not PathKind.PROTECTED:
                return False
        except BadPath:
            return False
        plan = self._plan(exchange)
        if plan is None or (recognised := self._services.gate.recognised(plan.token)) is None:
            return False
        claims, touch = recognised
        DirectForward(services, exchange, plan, claims, touch).begin()
        return True

    def _plan(self, exchange: Exchange) -> Plan | None:
        """Return what to do with requests that have these headers, None for those that the application handles.

        Of each shared header section the plan for one client address is cached: a client whose address changes does not
        fill the cache.
        """
        peer, section = exchange.scopes.client, exchange.head.section
        address = None if peer is None else peer[0]
        cached = self._plans.get(section)
        if cached is not None and cached[0] == address:
            return cached[1]
        plan = self._make_plan(exchange)
        if section.is_shared:
            if len(self._plans) >= _MAX_PLANS:
                # Drop the oldest. If it is still in use, the next request makes it anew.
                del self._plans[next(iter(self._plans))]
            self._plans[section] = (address, plan)
        return plan

    def _make_plan(self, exchange: Exchange) -> Plan | None:
        services, rules, peer = self._services, self._services.rules, exchange.scopes.client
        headers, has_body = exchange.head.headers, exchange.head.length != 0
        if not _INDIRECT_HEADERS.isdisjoint([name for name, _ in headers]):
            return None
        if overrides_method(headers):
            return None
        token = services.gate.token_of(headers)
        if token is None or services.strays.rules_out_direct_route(headers):
            return None
        kept = [pair for pair in rules.identity.without_spoofed(headers) if pair[0] != REQUEST_ID]
        if not rules.forward_authorization:
            kept = rules.sources.strip_tokens(kept)
        kept.append((REQUEST_ID, b""))
        try:
            written = serialized(services, exchange, "GET", b"/", kept, has_body=has_body)
        except RequestNotForwardable:
            return None
        before, _, after = written.head.partition(_REQUEST_ID_LINE)
        given = get(headers, REQUEST_ID)
        made = request_id(headers)
        return Plan(
            token,
            rules.trusted.client(None if peer is None else peer[0], headers),
            made if given == made.encode() else None,
            before[before.index(b"\r\n") :] + b"\r\n",
            b"\r\n" + after,
            expects=written.expects,
            takes_trailers=accepts_trailers(exchange),
        )
