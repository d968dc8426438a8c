"""The services that every direct request uses (see `plan.py`)."""

from __future__ import annotations

from typing import NamedTuple

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.renewals import Renewals
from gatekeeper.auth.strays import StrayTokens
from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.upstream.interface import Upstream
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules


class InternalError(GatekeeperError):
    """A bug of Gatekeeper. The log has its traceback; the client gets no details."""

    reason = Reason.INTERNAL_ERROR


class DirectServices(NamedTuple):
    """The services that every direct request uses. `responder` writes responses that do not come from the backend;
    `renewals` is None where the backend issues no tokens; `own_headers` are the names that Gatekeeper sets."""

    gate: Gate
    rules: RequestRules
    streams: OpenStreams
    telemetry: Telemetry
    responder: Responder
    upstream: Upstream
    strays: StrayTokens
    renewals: Renewals | None
    own_headers: frozenset[bytes]
