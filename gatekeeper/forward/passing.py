"""Forwarding of the requests that the pipeline passes."""

from __future__ import annotations

from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.forward.forward import Forward
from gatekeeper.forward.observed import ObservedForward
from gatekeeper.forward.request_lines import accepts_trailers, serialized, target_of
from gatekeeper.http.headers import REQUEST_ID
from gatekeeper.server import Exchange
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.web.outcome import Passed
from gatekeeper.web.request import IncomingRequest


class Passing:
    """Carries out the outcome `Passed` of HTTP requests: each gets a `Forward`."""

    def __init__(self, services: DirectServices) -> None:
        self._services = services

    def __repr__(self) -> str:
        return f"<Passing to {self._services.upstream!r}>"

    async def __call__(
        self, exchange: Exchange, incoming: IncomingRequest, record: RequestRecord, passed: Passed
    ) -> None:
        """Forward one request, which takes care of its record from now on. Raises RequestNotForwardable."""
        services, rules = self._services, self._services.rules
        query = rules.sources.strip_query(incoming.query) if rules.reads_query(incoming) else incoming.query
        headers = [pair for pair in passed.headers if pair[0] != REQUEST_ID]
        headers.append((REQUEST_ID, incoming.request_id.encode()))
        has_body = passed.body and exchange.head.length != 0
        written = serialized(
            services, exchange, incoming.method, target_of(exchange, query), headers, has_body=has_body
        )
        if passed.replay is not None:
            exchange.put_back(passed.replay.content)
        # A client that pipelines requests and reads no response has to wait.
        while exchange.is_full:
            await exchange.wait_writable()
        session, takes_trailers = passed.session, accepts_trailers(exchange)
        if passed.observation is not None:
            forward: Forward = ObservedForward(
                services, exchange, record, passed.observation, passed.language, takes_trailers=takes_trailers
            )
        else:
            claims = None if session is None or session.degraded or not session.session_id else session.claims
            forward = Forward(services, exchange, record, claims, takes_trailers=takes_trailers)
            if session is not None and session.session_id:
                forward.bind(session.user, session.session_id)
        forward.pass_on(written, has_body=has_body)
