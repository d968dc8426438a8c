"""The responses that the HTTP server makes by itself, worded, counted and logged like those of the pipeline."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.http.headers import REQUEST_ID
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.http.request_head import PROXY_PROTOCOL, TLS
from gatekeeper.models import Problem
from gatekeeper.server import EXTENSION, ErrorResponse, RejectedRequest
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.web.outcome import conclude, failed
from gatekeeper.web.request import IncomingRequest, read
from gatekeeper.web.respond import JSON, OWN_HEADERS, Responder, encode
from gatekeeper.web.rules import RequestRules

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
    """Words the requests that `server.protocol` rejects."""

    def __init__(self, rules: RequestRules, responder: Responder, telemetry: Telemetry) -> None:
        self._rules = rules
        self._responder = responder
        self._telemetry = telemetry

    def __repr__(self) -> str:
        return f"<ServerErrors by {self._responder!r}>"

    def __call__(self, refusal: RejectedRequest) -> ErrorResponse:
        reason = _REASONS[refusal.status]
        if refusal.detail in (PROXY_PROTOCOL, TLS):
            self._telemetry.protocol_refused("PROXY protocol" if refusal.detail == PROXY_PROTOCOL else "TLS")
        incoming = self._incoming(refusal)
        kind = self._kind(incoming)
        refused = failed(Problem(reason=reason, detail="" if reason.detail else refusal.detail), kind)
        current: RequestRecord | None = ((refusal.scope or {}).get("extensions") or {}).get(EXTENSION, {}).get("record")
        record = current or self._begun(incoming, kind)
        incoming = msgspec.structs.replace(incoming, request_id=record.request_id)
        body = encode(self._responder.error_body(refused, incoming))
        record.status = refusal.status
        conclude(record, "error" if refusal.status >= 500 else "deny", reason)
        if refusal.method != "HEAD":
            record.bytes_out += len(body)
        if current is None:
            self._telemetry.finished(record)
        headers = [*OWN_HEADERS, *self._responder.cors_headers(refusal.headers), JSON]
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
        return read(scope, self._rules.trusted)

    def _kind(self, incoming: IncomingRequest) -> RouteMatch | PathKind:
        """The kind of path, as far as it can be read; only the shape of the response depends on it."""
        try:
            return self._rules.paths.classify(incoming.method, incoming.path)
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
        self._telemetry.began(record)
        return record
