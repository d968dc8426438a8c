"""Reads the record of a session, which the scripts pack as MessagePack, into a `Session`."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.identifiers import read
from gatekeeper.models import EndReason, Location, Session
from gatekeeper.sessions import user_agents as agents
from gatekeeper.sessions.device import device_of


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """The fields of a record, in the order of `new_record` in upkeep.lua. Instants are microseconds, 0 for none."""

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

# The offset of the bytes in a packed string, by its first byte: fixstr, str 8, str 16.
_STRING_STARTS: Final = dict.fromkeys(range(0xA0, 0xC0), 1) | {0xD9: 2, 0xDA: 3}


class _Particulars(msgspec.Struct, array_like=True, frozen=True):
    """The fields that only lists show, in the order of `particulars` in upkeep.lua."""

    client: str = ""
    user_name: str = ""
    given_name: str = ""


_decode_particulars = msgspec.msgpack.Decoder(_Particulars).decode
_NONE: Final = _Particulars()


def session_of(user: str, session_id: int, last_activity: int, packed: bytes, particulars: bytes = b"") -> Session:
    """Makes a session of its packed record; `last_activity` is in microseconds. Raises `ValueError`, `LookupError` or
    `MsgspecError` for a garbled record."""
    record = _decode(packed)
    # Lua packs every string as text, but a packed user agent is not text.
    kept = bytes(record.user_agent)
    user_agent = agents.unpacked(kept[_STRING_STARTS[kept[0]] :])
    more = _decode_particulars(particulars) if particulars else _NONE
    return Session(
        id=session_id,
        user=user,
        reference=record.reference,
        jti=read(record.jti) or None,
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
        client=more.client,
        user_name=more.user_name,
        given_name=more.given_name,
        is_exempt=record.exempt == 1,
        usable_until=max(record.token_expires_at, record.refresh_expires_at),
    )
