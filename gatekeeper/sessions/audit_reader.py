"""Reads the audit log: the events of both streams as one list, ordered by the time at which they happened.

An event is in the stream within moments, but events of two processes may arrive in another order than that in which
they happened. So an event that arrives within a minute stands where its `ts` puts it. One that arrives later, such as a
session that no process saw become idle, stands where it arrived, marked `late`: an export that was made before then
stays a prefix of the next one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.audit import stream_keys
from gatekeeper.sessions.audit_event import AuditEvent
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_FIELDS: Final = AuditEvent.__struct_fields__
_AT_ONCE: Final = 1000
_FOLLOW_SECONDS: Final = 0.5
_WINDOW: Final = 60_000_000
# Where reading begins before the earliest time asked for: the clock of a host may be ahead of the store's.
_AHEAD_MILLISECONDS: Final = 3_600_000


class RecordedEvent(AuditEvent, frozen=True, kw_only=True):
    """An event as it is read. `late`: it arrived over a minute after it happened, and stands where it arrived."""

    late: bool


class _Arrived(NamedTuple):
    """An event with its place in the order, and the instant and the place of its arrival; instants in microseconds
    since 1970."""

    place: int
    arrived: int
    sequence: int
    stream: int
    event: RecordedEvent


class Position(msgspec.Struct):
    """The last entry that was read of each stream, by key."""

    last: dict[bytes, str]


class AuditReader:
    """Reads events. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str) -> None:
        self._redis = redis
        self._keys: Final = stream_keys(key_prefix)

    def __repr__(self) -> str:
        return f"<AuditReader {self._keys[0].decode()}>"

    async def read(self, since: int = 0, until: int | None = None) -> AsyncIterator[RecordedEvent]:
        """Yields events in order: those whose `ts` is from `since` on and before `until`, in microseconds since
        1970."""
        start = str(max(0, since // 1000 - _AHEAD_MILLISECONDS))
        entries = _merged([self._entries(stream, start) for stream in range(len(self._keys))])
        async for event in in_order(entries, since, until):
            yield event

    async def last(self, number: int) -> tuple[list[RecordedEvent], Position]:
        """Returns the newest events in order, and the position from which `follow` goes on."""
        # Enough to see what belongs among the newest although it arrived earlier.
        count = 2 * number + _AT_ONCE
        position, found, complete_from = Position({}), list[_Arrived](), 0
        for stream, key in enumerate(self._keys):
            reply = await self._redis.call(command("XREVRANGE", key, "+", "-", "COUNT", count))
            entries = [_read(each, stream) for each in reversed(_listed(reply))]
            position.last[key] = entries[-1][0] if entries else "0-0"
            arrivals = [entry for _, entry in entries]
            if len(arrivals) == count:
                complete_from = max(complete_from, arrivals[0].arrived)
            found += arrivals
        found.sort()
        newest = [entry.event for entry in found if entry.arrived >= complete_from]
        return newest[-number:] if number else [], position

    async def follow(self, position: Position) -> AsyncIterator[RecordedEvent]:
        """Yields every new event after `position` as it arrives, forever."""
        while True:
            arrived = list[_Arrived]()
            for stream, key in enumerate(self._keys):
                async for stream_id, entry in self._with_ids(stream, f"({position.last[key]}"):
                    position.last[key] = stream_id
                    arrived.append(entry)
            for entry in sorted(arrived):
                yield entry.event
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def _entries(self, stream: int, start: str) -> AsyncIterator[_Arrived]:
        async for _, entry in self._with_ids(stream, start):
            yield entry

    async def _with_ids(self, stream: int, start: str) -> AsyncIterator[tuple[str, _Arrived]]:
        """Yields the entries of one stream as they arrived. `start` is a stream id, or milliseconds since 1970; `(`
        before it excludes it (Redis, XRANGE)."""
        while True:
            entries = _listed(
                await self._redis.call(command("XRANGE", self._keys[stream], start, "+", "COUNT", _AT_ONCE))
            )
            stream_id = ""
            for each in entries:
                stream_id, entry = _read(each, stream)
                yield stream_id, entry
            if len(entries) < _AT_ONCE:
                return
            start = f"({stream_id}"


async def in_order(entries: AsyncIterator[_Arrived], since: int, until: int | None) -> AsyncIterator[RecordedEvent]:
    """Yields the events of `entries`, which come by arrival, in order: each once no earlier one can arrive."""
    waiting: list[_Arrived] = []
    async for entry in entries:
        while waiting and waiting[0].place < entry.arrived - _WINDOW:
            yield heapq.heappop(waiting).event
        if _within(entry.event, since, until):
            heapq.heappush(waiting, entry)
    while waiting:
        yield heapq.heappop(waiting).event


async def _merged(streams: Iterable[AsyncIterator[_Arrived]]) -> AsyncIterator[_Arrived]:
    """Yields the entries of several streams by arrival."""
    heads = [(head, stream) for stream in streams if (head := await anext(stream, None)) is not None]
    while heads:
        index = min(range(len(heads)), key=lambda each: heads[each][0][1:4])
        head, stream = heads[index]
        yield head
        following = await anext(stream, None)
        if following is None:
            del heads[index]
        else:
            heads[index] = following, stream


def _within(event: AuditEvent, since: int, until: int | None) -> bool:
    at = _instant(event.ts)
    return since <= at and (until is None or at < until)


def _listed(reply: Any) -> list[Any]:
    if not isinstance(reply, list):
        raise _unexpected()
    return reply


def _read(entry: Any, stream: int) -> tuple[str, _Arrived]:
    try:
        stream_id, content = entry
        fields = {name.decode(): value.decode(errors="replace") for name, value in _pairs(content)}
        values: dict[str, Any] = {name: fields.get(name) or None for name in _FIELDS}
        if values["session_id"] is not None:
            values["session_id"] = int(values["session_id"])
        milliseconds, _, sequence = stream_id.decode().partition("-")
        arrived, happened = int(milliseconds) * 1000, _instant(values["ts"])
        late = arrived - happened > _WINDOW
        event = msgspec.convert(values | {"late": late}, RecordedEvent)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
        raise _unexpected() from None
    # The clock of a host that is far ahead does not hold an event back either.
    place = arrived if abs(arrived - happened) > _WINDOW else happened
    return stream_id.decode(), _Arrived(place, arrived, int(sequence), stream, event)


def _pairs(content: Any) -> Iterator[tuple[bytes, bytes]]:
    # With RESP3 the client returns a mapping in place of the flat list.
    if isinstance(content, dict):
        return iter(content.items())
    return zip(content[::2], content[1::2], strict=True)


def _instant(ts: str) -> int:
    moment = datetime.fromisoformat(ts)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def _unexpected() -> StoreUnavailable:
    return StoreUnavailable("unexpected entry in the audit stream", kind="protocol")
