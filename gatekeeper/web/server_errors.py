"""What the front door answers itself, in the words of the middleware, counted and logged as every other request."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.http.headers import REQUEST_ID
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.models import Problem
from gatekeeper.runtime import Engine
from gatekeeper.server import EXTENSION, ErrorResponse, RejectedRequest
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.web.operations import Operations
from gatekeeper.web.outcome import Refused, conclude, failed
from gatekeeper.web.request import IncomingRequest, read
from gatekeeper.web.respond import JSON, OWN_HEADERS, encode

_REASONS: Final = {
    400: Reason.BAD_REQUEST,
    405: Reason.METHOD_NOT_ALLOWED,
    408: Reason.REQUEST_TIMEOUT,
    413: Reason.BODY_TOO_LARGE,
    414: Reason.URI_TOO_LONG,
    426: Reason.UPGRADE_REQUIRED,
    431: Reason.HEADERS_TOO_LARGE,
    500: Reason.INTERNAL_ERROR,
}


class ServerErrors:
    """Words refusals for `front.protocol`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._operations = Operations(engine)

    def __repr__(self) -> str:
        return f"<ServerErrors of {self._engine!r}>"

    def __call__(self, refusal: RejectedRequest) -> ErrorResponse:
        reason = _REASONS[refusal.status]
        incoming = self._incoming(refusal)
        kind = self._kind(incoming)
        refused = failed(Problem(reason=reason, detail="" if reason.detail else refusal.detail), kind)
        under_way: RequestRecord | None = (
            ((refusal.scope or {}).get("extensions") or {}).get(EXTENSION, {}).get("record")
        )
        record = under_way or self._begun(incoming, kind)
        body = self._body(refused, msgspec.structs.replace(incoming, request_id=record.request_id))
        record.status = refusal.status
        conclude(record, "error" if refusal.status >= 500 else "deny", reason)
        if refusal.method != "HEAD":
            record.bytes_out += len(body)
        if under_way is None:
            self._engine.telemetry.finished(record)
        headers = [*OWN_HEADERS, *self._engine.origins.cors_headers(refusal.headers), JSON]
        return ErrorResponse([*headers, (REQUEST_ID, record.request_id.encode())], body)

    def _incoming(self, refusal: RejectedRequest) -> IncomingRequest:
        path, _, query = refusal.target.partition(b"?")
        scope = {
            "type": "http",
            "method": refusal.method,
            "raw_path": path,
            "query_string": query,
            "headers": refusal.headers,
            "client": refusal.client,
        }
        return read(scope, self._engine.trusted)

    def _kind(self, incoming: IncomingRequest) -> RouteMatch | PathKind:
        """What was asked, as far as that can be told. Nothing but the shape of the answer hangs on it."""
        try:
            return self._engine.paths.classify(incoming.method, incoming.path)
        except BadPath:
            return PathKind.PROTECTED

    def _begun(self, incoming: IncomingRequest, kind: RouteMatch | PathKind) -> RequestRecord:
        record = RequestRecord(
            method=incoming.method,
            path=incoming.path.decode("latin-1"),
            request_id=incoming.request_id,
            client_ip=incoming.client.ip_address,
            started_at=time.perf_counter(),
        )
        if isinstance(kind, RouteMatch):
            record.route = kind.route.template
        elif kind is PathKind.RESERVED:
            record.route = "/_gatekeeper/{path}"
        self._engine.telemetry.began(record)
        return record

    def _body(self, refused: Refused, incoming: IncomingRequest) -> bytes:
        wording = self._operations.wording(incoming, refused.operation, {})
        return encode(self._engine.router.word(refused.problem, refused.dialect, wording))
