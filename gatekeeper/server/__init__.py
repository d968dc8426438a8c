"""The front door: HTTP/1 from the open, as a protocol class under uvicorn.

Neither of uvicorn's own parsers can stand there: one knows no limit, lets trailers into the headers of a request that
is already being judged, and takes two `Host`; the other takes `Content-Length` beside `Transfer-Encoding` and a bare
LF for a line end; neither has a time-out for a head.

    uvicorn.Config(app, http=protocol(Limits(max_headers=50), refuse))

`head`, `body` and `handshake` are the rules, pure; `exchange` is ASGI; `protocol` is the connection: order, time and
what is answered without the application.
"""

from gatekeeper.http.request_head import Limits
from gatekeeper.server.exchange import Exchange, opening
from gatekeeper.server.protocol import no_shortcut, protocol
from gatekeeper.server.refusal import ErrorResponse, Refusal, Refuse
from gatekeeper.server.scope import EXTENSION

__all__ = [
    "EXTENSION",
    "ErrorResponse",
    "Exchange",
    "Limits",
    "Refusal",
    "Refuse",
    "no_shortcut",
    "opening",
    "protocol",
]
