"""The client's side: an HTTP/1 server, as a protocol class under uvicorn.

None of uvicorn's own parsers is strict enough. One has no limits, merges trailers into the headers of a request that is
already being decided on, and accepts two `Host` headers; the other accepts `Content-Length` beside `Transfer-Encoding`
and a bare LF as line end. Neither has a timeout for the head.

    uvicorn.Config(app, http=http_protocol(Limits(max_headers=50), render_error))

The rules of HTTP/1 are in `gatekeeper.http` (`request_head`, `request_body`, `websocket_handshake`). `exchange` speaks
ASGI. `protocol` keeps the connection: order of requests, timeouts, and responses without the application. `factory`
makes its class for one listener, and `listener` runs that under uvicorn.
"""

from gatekeeper.http.request_head import Limits
from gatekeeper.server.exchange import Exchange
from gatekeeper.server.factory import http_protocol
from gatekeeper.server.rejection import ErrorResponse, RejectedRequest, RenderError
from gatekeeper.server.response_lines import first_line, response_head_lines
from gatekeeper.server.scope import EXTENSION

__all__ = [
    "EXTENSION",
    "ErrorResponse",
    "Exchange",
    "Limits",
    "RejectedRequest",
    "RenderError",
    "first_line",
    "http_protocol",
    "response_head_lines",
]
