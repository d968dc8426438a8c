"""Forwarding of one plain request: its session check, and then as any other (see `plan.py`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gatekeeper.errors import StoreUnavailable
from gatekeeper.forward.direct_services import DirectServices
from gatekeeper.forward.forward import Forward
from gatekeeper.forward.prepared import Plan
from gatekeeper.http.headers import random_uuid
from gatekeeper.models import CheckResult, Claims
from gatekeeper.server import Exchange
from gatekeeper.store.command import Command, ReplyReceiver
from gatekeeper.store.errors import unavailable_from
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.web.outcome import conclude
from gatekeeper.web.request import CHECKED


class DirectForward(Forward):
    """Checks the session of one request, and forwards it. It is the `ReplyReceiver` of the session check, called by the
    store's connection."""

    __slots__ = ("_plan", "_touch")

    _claims: Claims

    def __init__(
        self, services: DirectServices, exchange: Exchange, plan: Plan, claims: Claims, touch: Command
    ) -> None:
        head = exchange.head
        record = RequestRecord(
            method=head.method,
            path=head.target.partition(b"?")[0].decode("ascii"),
            request_id=plan.request_id or random_uuid(),
            client_ip=plan.client_ip,
            started_at=time.perf_counter(),
        )
        super().__init__(services, exchange, record, claims, takes_trailers=plan.takes_trailers)
        self._plan = plan
        self._touch = touch

    def begin(self) -> None:
        """Send the session check. Called once, by `DirectRoute`."""
        services = self._services
        services.telemetry.began(self._record)
        self._exchange.attach(self)
        try:
            services.gate.send_for(self, self._touch)
        except StoreUnavailable as error:
            self._run_application(error)

    def set_exception(self, exception: BaseException, /) -> None:
        self._run_application(unavailable_from(exception))

    def set_result(self, result: Any, /) -> None:
        try:
            self._take_check(result)
        except Exception:  # noqa: BLE001 - the store's connection must read on for other requests
            self._internal_error()

    def _take_check(self, reply: Any) -> None:
        """Forward the request if its session is active and was touched, else let the application respond."""
        try:
            checked = self._services.gate.checked(self._claims, self._touch, reply)
        except StoreUnavailable as error:
            self._run_application(error)
            return
        if checked.outcome != "touched":
            self._run_application(checked)
            return
        record = self._record
        record.decided_seconds = time.perf_counter() - record.started_at
        record.user_id = self._claims.user
        record.session_id = self.session_id = checked.session_id
        conclude(record, "allow")
        if self._exchange.gone:
            self._finish()
            return
        self._services.streams.add(self._claims.user, self)
        plan, head = self._plan, self._exchange.head
        length = head.section.length
        self.send(
            b"".join(
                (
                    head.method.encode(),
                    b" ",
                    head.target,
                    b" HTTP/1.1",
                    plan.before,
                    plan.identity_of(self._services.rules.identity, self._claims, self.session_id),
                    record.request_id.encode(),
                    plan.after,
                )
            ),
            has_body=length != 0,
            chunked=length is None,
            expects=plan.expects,
        )

    def _run_application(self, checked: CheckResult | StoreUnavailable) -> None:
        """Let the application serve the request. It gets the result of the check, and records the request itself."""
        if self._record.status:
            # The server has rejected the body meanwhile.
            self._finish()
            return
        self._ended = True
        self._exchange.detach(self)
        self._services.telemetry.left(self._record)
        self._exchange.scope[CHECKED] = checked
        self._exchange.run_application()

    def client_left(self) -> None:
        # Before the session check has a result, wait for it: the request is recorded with its verdict.
        if self.session_id:
            self._finish()


if TYPE_CHECKING:

    def _interface(forward: DirectForward) -> ReplyReceiver:
        return forward
