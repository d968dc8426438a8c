"""The heads of full responses, as their clients get them.

Backends repeat entire heads many times within a second, and most lines of heads that differ.
"""

from __future__ import annotations

from typing import Final

from gatekeeper.forward.prepared import REQUEST_ID_LINE
from gatekeeper.http.forwarding import response_headers, response_line
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.server import first_line, response_head_lines

# As many as the response parser caches.
_MAX_CACHED: Final = 512
_heads: Final[dict[ResponseHead, bytes]] = {}
_lines: Final[dict[tuple[bytes, bytes], bytes]] = {}

known_head_lines: Final = _heads.get
"""Returns the lines that `cached_head_lines` returned for a head, or None."""


def cached_head_lines(head: ResponseHead) -> bytes:
    """Return `head_lines` and keep them for `known_head_lines`."""
    lines = head_lines(head)
    if head.is_shared:
        if len(_heads) >= _MAX_CACHED:
            _heads.clear()
        _heads[head] = lines
    return lines


def head_lines(head: ResponseHead) -> bytes:
    """Return the head of a full response for the client, up to the value of `X-Request-Id`."""
    lines = [first_line(head.status, head.reason)]
    for field in head.headers:
        line = _lines.get(field)
        if line is None:
            line = response_line(field)
            if line is None:
                passing = response_headers(head.headers, head.status)
                return response_head_lines(head.status, head.reason, passing) + REQUEST_ID_LINE
            if head.is_shared:
                if len(_lines) >= _MAX_CACHED:
                    _lines.clear()
                _lines[field] = line
        lines.append(line)
    lines.append(REQUEST_ID_LINE)
    return b"".join(lines)
