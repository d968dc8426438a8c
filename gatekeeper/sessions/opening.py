"""The table `opening` of the scripts: the fields of a new record, by name (scripts/opening.lua)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gatekeeper.claim_paths import at_path
from gatekeeper.identifiers import written
from gatekeeper.models import Claims, Client
from gatekeeper.sessions import user_agents as agents
from gatekeeper.sessions.audit_event import printable
from gatekeeper.sessions.device import hints_of
from gatekeeper.sessions.geo import Locator
from gatekeeper.sessions.keys import microseconds, new_id

_MOST_CHARACTERS: Final = 128


def packed_string(data: bytes) -> msgspec.Raw:
    """Bytes as a MessagePack string: Lua has one type for both, and `cmsgpack` reads no other."""
    size = len(data)
    if size < 1 << 5:
        head = bytes((0xA0 | size,))
    elif size < 1 << 8:
        head = bytes((0xD9, size))
    elif size < 1 << 16:
        head = b"\xda" + size.to_bytes(2, "big")
    else:
        head = b"\xdb" + size.to_bytes(4, "big")
    return msgspec.Raw(head + data)


class Openings:
    """Makes openings: adds what the client sent, and where it is, to the claims of a token."""

    def __init__(self, locator: Locator, *, leeway_seconds: float, user_name_claim: str | None = None) -> None:
        self._locator = locator
        self._user_name_claim = user_name_claim
        self._leeway_seconds = leeway_seconds

    def expires_at(self, seconds: float) -> int:
        """The instant (microseconds) until which a token may be presented that expires at `seconds`."""
        return microseconds(seconds + self._leeway_seconds)

    def fields(
        self,
        claims: Claims,
        client: Client,
        *,
        exempt: bool = False,
        login_method: str = "token",
        refresh: str = "",
        refresh_expires_at: float | None = None,
    ) -> dict[str, Any]:
        """The opening for the session of an access token. `refresh` is the digest of its refresh token, which expires
        at `refresh_expires_at` (seconds; None: unknown)."""
        location = self._locator.locate(client.ip_address)
        user_agent = agents.packed(printable(client.user_agent, agents.MOST_CHARACTERS))
        return {
            "id": str(new_id()),
            "jti": written(claims.jti) if claims.jti else "",
            "token_expires_at": self.expires_at(claims.expires_at),
            "exempt": int(exempt),
            "login_method": login_method,
            "refresh": refresh,
            "refresh_expires_at": microseconds(refresh_expires_at or 0),
            "ip_address": client.ip_address,
            "user_agent": packed_string(user_agent),
            "hints": hints_of(client.headers),
            "city": location.city,
            "country": location.country,
            "particulars": self._particulars(claims),
            **named_by(claims),
            **({"auth_time": _auth_time(claims.claims["auth_time"])} if "auth_time" in claims.claims else {}),
        }

    def _particulars(self, claims: Claims) -> msgspec.Raw | str:
        """The client and the name of a session's user, packed for `particulars` in scripts/upkeep.lua."""
        client = _text(claims.claims.get("azp")) or _text(claims.claims.get("client_id"))
        user_name = _text(at_path(claims.claims, self._user_name_claim)) if self._user_name_claim else ""
        return packed_string(msgspec.msgpack.encode([client, user_name, ""])) if client or user_name else ""


def _text(value: Any) -> str:
    return printable(value, _MOST_CHARACTERS) if isinstance(value, str) else ""


def named_by(claims: Claims) -> dict[str, Any]:
    """The fields by which a script finds the session of an access token (`session_of` in scripts/upkeep.lua)."""
    return {
        "reference": claims.reference,
        "issued_at": microseconds(claims.issued_at or 0),
        "digest": claims.digest,
    }


def _auth_time(value: Any) -> int:
    """The instant of `auth_time` (microseconds); 0 where it is no time, as for a sign-in of long ago."""
    is_time = isinstance(value, int | float) and not isinstance(value, bool)
    return microseconds(value) if is_time and value > 0 else 0
