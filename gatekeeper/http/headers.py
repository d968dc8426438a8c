"""Header fields: lists of names and values in bytes, with their order and repetition. Pure.

The backend learns about the user from identity headers and believes them. Therefore a client's header that a backend
could read as one of them, in whatever spelling, is removed (`IdentityHeaders.without_spoofed`), and the content of a
token cannot end a header line (`IdentityHeaders.values`).

As ASGI specifies, names in a scope are in lower-case; functions that look for a name rely on that.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from gatekeeper.claim_paths import at_path
from gatekeeper.http.grammar import TOKEN_BYTES, is_token

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
HeaderList: TypeAlias = list[tuple[bytes, bytes]]

REQUEST_ID: Final = b"x-request-id"
OWN_PREFIX: Final = b"x-gatekeeper-"
# `1` on a request that was admitted while the store was unreachable.
DEGRADED: Final = b"x-gatekeeper-degraded"

# Headers that replace the URL of the request line; some frameworks route by them (CVE-2026-40575).
URL_OVERRIDES: Final = frozenset({b"x-original-url", b"x-rewrite-url"})

_ALNUM = (string.ascii_letters + string.digits).encode()
_NOT_TOKEN = bytes(set(range(256)) - set(TOKEN_BYTES))
_FOLD = bytes(ord(chr(byte).lower()) if byte in _ALNUM else ord("-") for byte in range(256))
# A generator of its own: an application that seeds the global one does not make ids repeat.
_ids: Final = random.Random()  # noqa: S311 - no secret
_UUID_4: Final = 0x00000000_0000_4000_8000_000000000000
_UUID_FREE_BITS: Final = 0xFFFFFFFF_FFFF_0FFF_3FFF_FFFFFFFFFFFF
# Names are few and come with every request. When a client invents new ones, those over the limit are not cached.
_MAX_CACHED_NAMES: Final = 1024
_MAX_CACHED_NAME_BYTES: Final = 64
_REQUEST_ID_FORM = re.compile(rb"[A-Za-z0-9._:/=+-]{1,128}")

_SOURCES = frozenset({"sub", "session", "roles", "claim"})


def fold(name: bytes) -> bytes:
    """Return the name as the most lenient backend reads it: lower-case, with `-` for `_`, `.` and every other mark.

    CGI turns `-` into `_`, PHP `.` and space too, Apache every character that is neither letter nor digit: one folded
    name stands for all names that these read alike. Bytes that no name may have (RFC 9110 section 5.6.2) are left out.
    """
    return name.translate(_FOLD, _NOT_TOKEN)


def get_all(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of every header called `name` (lower-case), in order."""
    return [value for key, value in headers if key == name]


def get(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of the first header called `name` (lower-case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def request_id(headers: Headers) -> str:
    """Return the client's `X-Request-Id` if it is one header of 1 to 128 harmless characters, else a new UUID."""
    values = get_all(headers, REQUEST_ID)
    if len(values) == 1 and _REQUEST_ID_FORM.fullmatch(values[0]):
        return values[0].decode("ascii")
    return random_uuid()


def random_uuid() -> str:
    """Return a random UUID (RFC 9562 section 5.4). `uuid.uuid4` takes three times as long, with every request."""
    # RFC 9562: the bits of version and variant are fixed.
    bits = _ids.getrandbits(128) & _UUID_FREE_BITS | _UUID_4
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class IdentityHeaders:
    """The headers that identify the user to the backend. `names` are their names, `DEGRADED` included;
    `spelling` has them as they were configured, by their names in lower-case.

    `table` has one row for each header: its name, its source (`sub`, `session`, `roles` or `claim`) and, for `claim`,
    the dotted path of the claim. Raises ValueError for a name that is not a token, for two names that a backend may
    read as one, and for an unknown source.
    """

    def __init__(self, table: Sequence[tuple[str, str, str | None]]) -> None:
        self.spelling: Final = {name.lower().encode(): name.encode() for name, _, _ in table}
        self._table = tuple((_checked_name(name), source, claim) for name, source, claim in table)
        for name, source, claim in self._table:
            if source not in _SOURCES or (source == "claim") != bool(claim):
                raise ValueError(f"{name.decode()}: no such source: {source}")
        names = frozenset(name for name, _, _ in self._table)
        self.names: Final = names | {DEGRADED}
        self._folded = frozenset(map(fold, names)) | URL_OVERRIDES
        self._harmless: set[bytes] = set()
        if len({fold(name) for name in names}) != len(self._table):
            raise ValueError("two identity headers have one name, or names that a backend may read as one")

    def __repr__(self) -> str:
        return f"<IdentityHeaders {', '.join(sorted(name.decode() for name, _, _ in self._table))}>"

    def without_spoofed(self, headers: Headers) -> HeaderList:
        """Return a new list without the headers that a backend could read as an identity header, as `X-Gatekeeper-…`,
        or as another URL. Headers whose name is not a token are removed too: how a backend reads them is unknown.

        It serves for header sections and for trailers.
        """
        harmless = self._harmless
        return [pair for pair in headers if pair[0] in harmless or self._is_harmless(pair[0])]

    def _is_harmless(self, name: bytes) -> bool:
        folded = name.translate(_FOLD, _NOT_TOKEN)
        if len(folded) != len(name) or folded in self._folded or folded.startswith(OWN_PREFIX):
            return False
        if len(self._harmless) < _MAX_CACHED_NAMES and len(name) <= _MAX_CACHED_NAME_BYTES:
            self._harmless.add(name)
        return True

    def values(self, user: str, session_id: int | None, roles: Sequence[str], claims: Mapping[str, Any]) -> HeaderList:
        """Return the headers for this user, names in lower-case.

        Values are UTF-8 with everything outside printable ASCII, `%`, and spaces at either end percent-encoded, so that
        decoding gives back exactly the text. Roles are joined by `,`, a comma inside a role is `%2C`; without roles the
        header is present and empty. A claim that is a string is written as it is, a list of plain values like roles,
        everything else as compact JSON (`true`, `7`, `{"a":1}`). A claim that is absent or null makes no header, and
        neither does an unknown session.
        """
        headers = []
        for name, source, claim in self._table:
            if source == "sub":
                headers.append((name, _encoded(user)))
            elif source == "session":
                if session_id is not None:
                    headers.append((name, b"%d" % session_id))
            elif source == "roles":
                headers.append((name, _joined(roles)))
            elif (value := at_path(claims, claim or "")) is not None:
                headers.append((name, _claim_text(value)))
        return headers


def _checked_name(name: str) -> bytes:
    raw = name.lower().encode()
    if not is_token(raw):
        raise ValueError(f"not a header name: {name!r}")
    return raw


# A space is kept except at either end, where parsers trim it (RFC 9110 section 5.5).
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}
_PLAIN_IN_LIST = _PLAIN - {ord(",")}


def _encoded(text: str, plain: frozenset[int] = _PLAIN) -> bytes:
    # JSON can hold lone surrogates; an admitted request must not fail because of them.
    raw = text.encode("utf-8", "surrogatepass")
    if plain.issuperset(raw) and raw == raw.strip(b" "):
        return raw
    first, last = len(raw) - len(raw.lstrip(b" ")), len(raw.rstrip(b" "))
    return b"".join(
        bytes((byte,)) if byte in plain and first <= at < last else b"%%%02X" % byte for at, byte in enumerate(raw)
    )


def _joined(items: Sequence[str]) -> bytes:
    return b",".join(_encoded(item, _PLAIN_IN_LIST) for item in items)


def _claim_text(value: Any) -> bytes:
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return _joined([_plain_text(item) for item in value])
    return _encoded(_plain_text(value))


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
