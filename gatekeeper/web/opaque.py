"""Opaque API keys beside JWTs: on the paths of `OPAQUE_BEARER_PATHS` they are the backend's to judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gatekeeper.http.headers import get_all
from gatekeeper.http.paths import PathPattern, matches_every_reading
from gatekeeper.web.request import IncomingRequest

_AUTHORIZATION: Final = b"authorization"
# No JWT: its header is JSON, so it begins with `ey`, and it has two dots.
_OPAQUE: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] (?!ey)(?![^.]*\.[^.]*\.)[A-Za-z0-9._~+/=|-]{16,512}")


class OpaqueBearers:
    """The paths where an opaque Bearer passes as it is."""

    def __init__(self, patterns: Sequence[PathPattern] = ()) -> None:
        self._patterns = tuple(patterns)

    def __repr__(self) -> str:
        return f"<OpaqueBearers on {len(self._patterns)} paths>"

    def covers(self, incoming: IncomingRequest) -> bool:
        """Return true for a request with an opaque Bearer, on a path that allows it in every reading. With a method
        override the rule never holds."""
        if not self._patterns:
            return False
        values = get_all(incoming.headers, _AUTHORIZATION)
        if len(values) != 1 or _OPAQUE.fullmatch(values[0].strip(b" \t")) is None or incoming.overrides_method:
            return False
        return matches_every_reading(self._patterns, incoming.method, incoming.path)
