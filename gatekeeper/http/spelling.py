"""Header names as they are written. Pure.

Inside, names are in lower-case, as ASGI demands. Names have no case to HTTP/1 (RFC 9110 section 5.1), but it matters to
some devices and SOAP stacks: they are written as they were read, and Gatekeeper's own as they are usually written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatekeeper.http.headers import DEGRADED, REQUEST_ID, HeaderList, Headers

USUAL: Final[Mapping[bytes, bytes]] = {
    name.lower(): name
    for name in (
        b"Authorization",
        b"Connection",
        b"TE",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Port",
        b"X-Forwarded-Proto",
        b"X-Gatekeeper-Degraded",
        b"X-Real-IP",
        b"X-Request-Id",
    )
}
"""The usual spelling of names that Gatekeeper sets."""

_OURS_ALONE: Final = frozenset({REQUEST_ID, DEGRADED})


def written_names(headers: Headers, received: HeaderList, own: Mapping[bytes, bytes]) -> list[bytes]:
    """Return the name of each of `headers` (lower-case) as it is written: those in `own` as there, one that was
    `received` as it was read, any other in its usual spelling."""
    read = {(name.lower(), value): name for name, value in received}
    by_name = {name.lower(): name for name, _ in received}
    names = []
    for pair in headers:
        name = pair[0]
        if name in own:
            names.append(own[name])
        elif name in _OURS_ALONE:
            names.append(USUAL[name])
        else:
            names.append(read.get(pair) or USUAL.get(name) or by_name.get(name, name))
    return names
