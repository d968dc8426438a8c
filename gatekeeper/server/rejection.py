"""Responses of the server to requests that it rejects, and the interface for their content."""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, TypeAlias

import msgspec

from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.http.request_head import Limits, RequestHead, RequestRejected, protocol_instead, salvage
from gatekeeper.http.spelling import USUAL
from gatekeeper.http.types import Scope
from gatekeeper.server.response_lines import status_line

TIMED_OUT: Final = "The request did not arrive in time"
INCOMPLETE: Final = "The request ended before it was complete"
INTERNAL_ERROR: Final = "Internal error; the request id finds it in the log"

_log = logging.getLogger("uvicorn.error")


class RejectedRequest(msgspec.Struct, frozen=True):
    """A request that the server rejects; its connection ends with the response.

    `status` is 400, 405, 408, 413, 414, 426 or 431, or 500 for an application that failed without a response; `detail`
    says what is wrong, in English. `method` and `target` are empty if the request line was incomplete. `headers` are
    the well-formed ones, names in lower-case: they serve to word the response, never for a decision. `scope` is that of
    the application if it has this request too: it is informed that its client left, and logs the request itself.
    """

    status: int
    detail: str
    method: str
    target: bytes
    headers: HeaderList
    client: tuple[str, int] | None
    scope: Scope | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The content of an error response, without framing. `Content-Length`, `Connection`, a missing `Date` and the
    headers that a status requires (`Allow`, `Sec-WebSocket-Version`) are added to it."""

    headers: HeaderList
    body: bytes


RenderError: TypeAlias = Callable[[RejectedRequest], ErrorResponse]
"""Writes the content of an error response. It is called once for each rejected request, so it may count and log; it
must not block."""


def reject(
    render_error: RenderError,
    rejected: RequestRejected,
    read: RequestHead | bytes,
    limits: Limits,
    client: tuple[str, int] | None,
    scope: Scope | None,
) -> bytes:
    """Return the full response to a rejected request, of which `read` is the head, or else the bytes so far."""
    detail = rejected.detail
    if isinstance(read, RequestHead):
        method, target, headers = read.method, read.target, read.headers
    else:
        method, target, headers = salvage(read, limits)
        if rejected.status == 400:
            detail = protocol_instead(read) or detail
    request = RejectedRequest(rejected.status, detail, method, target, headers, client, scope)
    return error_response(render_error, request, rejected.headers)


def error_response(render_error: RenderError, request: RejectedRequest, required: Headers) -> bytes:
    """Return the full response to a rejected request in bytes, the last of its connection.

    `required` are the headers that its status requires. If `render_error` fails, the response has no content.
    """
    try:
        response = render_error(request)
    except Exception:  # noqa: BLE001 - the connection must end all the same
        _log.exception("server failed to write an error response")
        response = ErrorResponse([], b"")
    headers = [*response.headers, *required]
    if all(name.lower() != b"date" for name, _ in headers):
        # RFC 9110 section 6.6.1: an origin server with a clock sends `Date`.
        headers.append((b"date", formatdate(usegmt=True).encode()))
    lines = [b"%b: %b\r\n" % (USUAL.get(name, name), value) for name, value in headers]
    # RFC 9110 section 7.8: `Upgrade` is an option of the connection.
    options = b"upgrade, close" if any(name == b"upgrade" for name, _ in required) else b"close"
    framing = b"Content-Length: %d\r\nConnection: %b\r\n\r\n" % (len(response.body), options)
    body = b"" if request.method == "HEAD" else response.body
    return b"".join((status_line(request.status), *lines, framing, body))
