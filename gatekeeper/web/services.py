"""The services behind the Python API: tokens and sessions, for the application behind the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.sessions.manager import Manager
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.verifier import Verifier
from gatekeeper.web.rules import RequestRules


class ApplicationClient:
    """A redis-py client of the store for the application, opened when it is first asked for. It has connections of its
    own, so verdicts never wait for the application's commands."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None

    async def prepare(self) -> None:
        """Load redis-py off the event loop."""
        await asyncio.to_thread(import_module, "gatekeeper.store.redis_client")

    def get(self) -> Any:
        """The client. The keys in the store are Gatekeeper's, and only to be read."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


class Services(NamedTuple):
    """The services behind the Python API. `issued` is None where the application issues its own tokens."""

    rules: RequestRules
    language: str
    gate: Gate
    verifier: Verifier
    manager: Manager
    issued: IssuedSignIn | None
    telemetry: Telemetry
    client: ApplicationClient
