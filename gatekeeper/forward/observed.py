"""Forwarding of a login or refresh whose response is read before the client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from gatekeeper.auth.requests import ObservedSignIn
from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.forward.forward import Forward
from gatekeeper.forward.held import HeldResponse
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.server import Exchange
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.upstream.interface import BackendConnection
from gatekeeper.web.observe import ResponseReading
from gatekeeper.web.outcome import Refused


class ObservedForward(Forward):
    """Forwards a request, and holds its response until it has been read, up to a bound."""

    __slots__ = ("_language", "_reading", "_under_way")

    takes_full_response = False

    def __init__(
        self,
        services: DirectServices,
        exchange: Exchange,
        record: RequestRecord,
        observation: ObservedSignIn,
        language: str | None,
        *,
        takes_trailers: bool,
    ) -> None:
        super().__init__(services, exchange, record, None, takes_trailers=takes_trailers)
        self._language = language
        self._reading = ResponseReading(
            observation, telemetry=services.telemetry, reader=services.rules.responses, record=record
        )
        self._under_way = observation.under_way()
        self._under_way.__enter__()

    def on_head(self, head: ResponseHead) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - it calls this
        self._note_head()
        _ReadResponse(self, connection, self._reading, head)

    def settle(self, release: Callable[[], None]) -> None:
        """Judge what was read of the response, and give it on or refuse it."""

        async def judge() -> None:
            try:
                problem = await self._reading.judge()
                self._connecting = None
                if self._ended:
                    return
                if problem is None:
                    release()
                else:
                    self._refuse(Refused(problem, token_sent=True, language=self._language))
            except Exception:  # noqa: BLE001 - the client would get no response
                self._connecting = None
                self._internal_error()

        self._connecting = asyncio.get_running_loop().create_task(judge())

    def _let_go(self) -> None:
        super()._let_go()
        self._under_way.__exit__(None, None, None)


class _ReadResponse(HeldResponse):
    """Receives the response in place of its forward, until enough of it has been read."""

    def __init__(
        self, forward: ObservedForward, connection: BackendConnection, reading: ResponseReading, head: ResponseHead
    ) -> None:
        super().__init__(forward, connection)
        self._observed = forward
        self._reading = reading
        self._head = head
        self._is_settled = False
        if not reading.begin(head.status, head.headers):
            self._settle()

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        if not (self._is_settled or self._reading.add(data)):
            self._settle()

    def _end_with(self, event: Callable[[], None]) -> None:
        super()._end_with(event)
        if not self._is_settled:
            self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if not self._is_over:
            self._connection.pause_reading()
        self._observed.settle(partial(self.release, self._head))
