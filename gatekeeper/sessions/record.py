"""A session's record, as the scripts pack it (MessagePack), and the session that it is."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.models import EndReason, Location, Session
from gatekeeper.sessions import user_agents as agents
from gatekeeper.sessions.device import device_of


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """The order is that of `common.lua`. Instants are microseconds, 0 where there is none."""

    created_at: int
    expires_at: int
    token_expires_at: int
    exempt: int
    ended_at: int
    end_reason: str
    hidden: int
    last_activity: int
    refresh_expires_at: int
    reference: str
    jti: str
    login_method: str
    refresh: str
    ip_address: str
    user_agent: msgspec.Raw
    hints: str
    city: str
    country: str


_decode = msgspec.msgpack.Decoder(_Record).decode

# By its first byte, where in a packed string the bytes begin: fixstr, str 8, str 16.
_STRING_STARTS: Final = dict.fromkeys(range(0xA0, 0xC0), 1) | {0xD9: 2, 0xDA: 3}


def session_of(user: str, session_id: int, last_activity: int, packed: bytes) -> Session:
    """`last_activity` in microseconds. Raises `ValueError`, `LookupError` or `MsgspecError` for what is no record."""
    record = _decode(packed)
    # Lua knows one kind of string, which goes for text; this one need not be.
    kept = bytes(record.user_agent)
    user_agent = agents.unpacked(kept[_STRING_STARTS[kept[0]] :])
    return Session(
        id=session_id,
        user=user,
        reference=record.reference,
        jti=record.jti or None,
        ip_address=record.ip_address,
        user_agent=user_agent,
        device=device_of(user_agent, record.hints),
        location=Location(record.city, record.country),
        login_method=record.login_method,
        created_at=record.created_at,
        last_activity=last_activity,
        expires_at=record.expires_at,
        ended_at=record.ended_at or None,
        end_reason=EndReason(record.end_reason) if record.end_reason else None,
    )
