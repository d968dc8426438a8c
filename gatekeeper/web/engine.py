"""The parts of a running Gatekeeper, as its hosts get them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.renewals import Renewals
from gatekeeper.auth.strays import StrayTokens
from gatekeeper.runtime import Readiness, Runtime
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.verify_queue import VerifyQueue
from gatekeeper.web.pipeline import Pipeline
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules
from gatekeeper.web.services import Services


class Engine(NamedTuple):
    """The parts that a host stands on; a host takes what it needs and passes the engine to nothing.

    `reload` takes the secrets of other settings, and lets key sets be read again. Raises `ConfigError`.
    """

    runtime: Runtime
    readiness: Readiness
    pipeline: Pipeline
    rules: RequestRules
    responder: Responder
    gate: Gate
    strays: StrayTokens
    streams: OpenStreams
    telemetry: Telemetry
    verify_queue: VerifyQueue
    services: Services
    renewals: Renewals | None
    claimed: list[str]
    reload: Callable[[Any], Awaitable[None]]

    def __repr__(self) -> str:
        return f"<Engine {self.runtime!r} {self.readiness!r}>"
