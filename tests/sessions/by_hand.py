"""Tokens for tests, and a client that edits the store: it makes time pass by rewriting what is stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
import redis

from gatekeeper.models import Claims, Client, EndReason, Session
from gatekeeper.sessions.keys import SPARE_SECONDS
from gatekeeper.sessions.sign_ins import RefreshToken, Rotation, SignInResult, SignIns, Successor
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.connection import PendingCall, StoreConnection
from gatekeeper.store.queue import CommandQueue
from tests.waiting import HANG_SECONDS

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
CLIENT = Client(ip_address="203.0.113.9", user_agent=CHROME)
# The client of refreshes: a session shows the client of its sign-in.
ELSEWHERE = Client(ip_address="198.51.100.7", user_agent="okhttp/4.12.0")
DUE = "gk:due"
HOUR = 3600.0
DAY = 24 * HOUR

# Reads and writes what common.lua does, in the same layout; a field of a record may get any value.
_RECORDS = """
local function text(number) return string.format('%.0f', number) end
local function load(id)
  local packed = redis.call('HGET', KEYS[1], id)
  local created_at, expires_at, token_expires_at, flags = struct.unpack('>dddB', packed)
  local record = cmsgpack.unpack(string.sub(packed, 26))
  for field = 19, 5, -1 do record[field] = record[field - 4] end
  record[1], record[2], record[3], record[4] = created_at, expires_at, token_expires_at, flags % 2
  return record
end
local function number(value) return type(value) == 'number' and value or 0 / 0 end
local function save(id, record)
  local flags = (record[4] == 0 or record[4] == 1) and record[4] or 128
  flags = flags + (record[5] ~= 0 and 2 or 0) + (record[19] and 4 or 0)
  local head = struct.pack('>dddB', number(record[1]), number(record[2]), number(record[3]), flags)
  redis.call('HSET', KEYS[1], id, head .. cmsgpack.pack({unpack(record, 5, 19)}))
end
local function entries()
  local packed, found = redis.call('HGET', KEYS[1], 'i'), {}
  if packed == 'key' then
    local flat = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
    for at = 1, #flat, 2 do found[flat[at]] = tonumber(flat[at + 1]) end
  else
    for at = 1, packed and #packed or 0, 16 do
      local id, score = struct.unpack('>dd', packed, at)
      found[text(id)] = score
    end
  end
  return found
end
local function keep(scores)
  if redis.call('HGET', KEYS[1], 'i') == 'key' then
    local left = redis.call('PTTL', KEYS[redis.call('EXISTS', KEYS[2]) == 1 and 2 or 1])
    redis.call('DEL', KEYS[2])
    for id, score in pairs(scores) do redis.call('ZADD', KEYS[2], text(score), id) end
    if left > 0 then redis.call('PEXPIRE', KEYS[2], left) end
    return
  end
  local packed = {}
  for id, score in pairs(scores) do packed[#packed + 1] = struct.pack('>dd', id, score) end
  if #packed == 0 then redis.call('HDEL', KEYS[1], 'i') else redis.call('HSET', KEYS[1], 'i', table.concat(packed)) end
end
"""
# Everything of one user becomes ARGV[1] microseconds older, or with ARGV[2] only that session: a live session's score
# is its activity, an ended one's minus the instant from which it may leave.
_LET_PASS = """
local passed, only = tonumber(ARGV[1]), ARGV[2]
local scores = entries()
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.match(id, '^%d+$') and (only == '' or only == id) then
    local record = load(id)
    for _, field in ipairs({1, 2, 3, 5, 8, 9}) do
      if record[field] > 0 then record[field] = record[field] - passed end
    end
    local earlier = record[19]
    if earlier then
      for _, field in ipairs({2, 5}) do
        if earlier[field] > 0 then earlier[field] = earlier[field] - passed end
      end
    end
    save(id, record)
    local score = scores[id]
    scores[id] = score > 0 and score - passed or score + passed
  end
  local owner = string.match(id, '^t:(%d+)$')
  if owner and (only == '' or only == owner) then
    local names = cmsgpack.unpack(redis.call('HGET', KEYS[1], id))
    for _, name in ipairs(names) do name[2] = name[2] - passed end
    redis.call('HSET', KEYS[1], id, cmsgpack.pack(names))
  end
end
keep(scores)
for _, id in ipairs(redis.call('HKEYS', KEYS[4])) do
  if only == '' or only == id then
    local pair = cmsgpack.unpack(redis.call('HGET', KEYS[4], id))
    pair[3] = pair[3] - passed
    redis.call('HSET', KEYS[4], id, cmsgpack.pack(pair))
  end
end
local not_before = redis.call('GET', KEYS[3])
if not_before and only == '' then
  local at, rest = string.match(not_before, '^(%d+)( .*)$')
  redis.call('SET', KEYS[3], text(tonumber(at) - passed) .. rest)
end
local beside = redis.call('HGET', KEYS[1], 'b')
if beside and only == '' then
  local at, rest = string.match(beside, '^(%d+)( .*)$')
  redis.call('HSET', KEYS[1], 'b', text(tonumber(at) - passed) .. rest)
end
"""
_SET_FIELD = """
local record = load(ARGV[1])
local value = ARGV[3]
if ARGV[4] == 'nan' then value = 0 / 0 elseif ARGV[4] == 'number' then value = tonumber(value) end
record[tonumber(ARGV[2])] = value
save(ARGV[1], record)
"""
# ARGV: id and score in turn; '' for a score takes the entry away.
_SCORE = """
local scores = entries()
for i = 1, #ARGV, 2 do scores[ARGV[i]] = tonumber(ARGV[i + 1]) end
keep(scores)
"""
_IN_KEY = """
local scores = entries()
if redis.call('HGET', KEYS[1], 'i') == 'key' then return end
redis.call('HSET', KEYS[1], 'i', 'key')
redis.call('DEL', KEYS[2])
keep(scores)
"""
_SCORES = """
local flat = {}
for id, score in pairs(entries()) do flat[#flat + 1], flat[#flat + 2] = id, text(score) end
return flat
"""
# ARGV: id of a session, then field and expiry of each older name that it is to have, the oldest first.
_NAME = """
local names = {}
for i = 2, #ARGV, 2 do
  names[#names + 1] = {ARGV[i], tonumber(ARGV[i + 1])}
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[1])
end
redis.call('HSET', KEYS[1], 't:' .. ARGV[1], cmsgpack.pack(names))
"""
_FIELDS = {
    "created_at": 1,
    "expires_at": 2,
    "token_expires_at": 3,
    "exempt": 4,
    "ended_at": 5,
    "end_reason": 6,
    "refresh_expires_at": 9,
    "user_agent": 15,
}


def token(
    reference: str,
    user: str = "74",
    *,
    expires_in: float = HOUR,
    issued_ago: float | None = 1.0,
    jti: str | None = None,
    claims: Mapping[str, Any] | None = None,
) -> Claims:
    """Makes a verified token. `issued_ago` None: it has no `iat`; below zero: its issuer's clock runs ahead. `claims`
    are further ones in its payload."""
    now = time.time()
    issued_at = None if issued_ago is None else now - issued_ago
    content = (user, reference, jti, issued_at, now + expires_in, sorted((claims or {}).items()))
    return Claims(
        user=user,
        reference=reference,
        jti=jti,
        roles=(),
        is_admin=False,
        issued_at=issued_at,
        expires_at=now + expires_in,
        claims=claims or {},
        digest=reference[2:] if reference.startswith("h:") else hashlib.sha256(repr(content).encode()).hexdigest(),
    )


class Door:
    """A session store, with the logins and refreshes of one user."""

    def __init__(self, store: SessionStore, *, window: float = 10.0) -> None:
        self.store = store
        self.sign_ins = SignIns(store._runner, reuse_window_seconds=window)

    async def log_in(
        self, claims: str | Claims, refresh: str | None = None, *, lives: float | None = None, **options: Any
    ) -> SignInResult:
        """Logs in. `lives`: the seconds until the `exp` of the refresh token. `presented` may be a reference."""
        if isinstance(presented := options.get("presented"), str):
            options["presented"] = token(presented)
        return await self.sign_ins.log_in(
            claims if isinstance(claims, Claims) else token(claims),
            CLIENT,
            exempt=options.pop("exempt", False),
            refresh=_refresh(refresh, lives),
            **options,
        )

    async def refreshed(
        self, claims: str | Claims, refresh: str | None = None, *, linked: int | None, lives: float | None = None
    ) -> SignInResult:
        claims = claims if isinstance(claims, Claims) else token(claims)
        return await self.sign_ins.refresh(
            claims, ELSEWHERE, exempt=False, refresh=_refresh(refresh, lives), linked=linked
        )

    async def rotate(self, presented: str, successor: str, *, lives: float = HOUR, sealed: bytes = b"") -> Rotation:
        """Replaces one digest by another. The sealed pair names both."""
        sealed = sealed or f"sealed for {presented}: {successor}".encode()
        made = Successor(successor, f"jti of {successor}", time.time() + lives, sealed)
        return await self.sign_ins.rotate("74", presented, made)

    async def check(self, reference: str, **options: Any) -> tuple[str, int]:
        checked = await self.store.check(token(reference, **options), CLIENT)
        return checked.outcome, checked.session_id

    async def reason(self, reference: str) -> EndReason | None:
        return (await self.store.check(token(reference), CLIENT)).end_reason

    async def word(self, digest: str) -> str:
        """Returns the outcome of a lookup by refresh token."""
        return (await self.sign_ins.lookup("74", digest=digest)).outcome

    async def live(self) -> set[str]:
        return {session.reference for session in await self.store.sessions("74")}

    async def session(self, session_id: int) -> Session:
        [found] = [each for each in await self.store.sessions("74", include_inactive=True) if each.id == session_id]
        return found


def _refresh(digest: str | None, lives: float | None) -> RefreshToken | None:
    return None if digest is None else RefreshToken(digest, None if lives is None else time.time() + lives)


class RecordingQueue(CommandQueue):
    def __init__(self, batches: list[list[list[str]]], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._batches = batches

    def _write(self, connection: StoreConnection, batch: list[PendingCall]) -> None:
        # A script unknown to the store is sent a second time, as EVAL, which is not recorded.
        if found := [_words(call.command.words) for call in batch if call.command.words[0] != "EVAL"]:
            self._batches.append(found)
        super()._write(connection, batch)


class Noting(StoreClient):
    """Records the calls that are sent, batch by batch: each as its words. Those of a script are its keys and
    arguments."""

    def __init__(self, url: str) -> None:
        self.batches: list[list[list[str]]] = []
        self.queue_class = partial(RecordingQueue, self.batches)
        super().__init__(url, timeout_seconds=HANG_SECONDS)

    @property
    def firsts(self) -> list[list[str]]:
        """The first word of every call: the command, or the script's first key."""
        return [[words[0] for words in batch] for batch in self.batches]


def _words(command: tuple[Any, ...]) -> list[str]:
    # A packed user agent is no text.
    words = [word.decode(errors="surrogateescape") if isinstance(word, bytes) else str(word) for word in command]
    return words[3:] if words[0] == "EVALSHA" else words


class Hand:
    """A plain client of the store that knows the keys of a user."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.redis.close()

    @staticmethod
    def keys(user: str = "74") -> tuple[str, str, str]:
        """The `sessions` key of a user whose id needs no encoding."""
        return f"gk:{{{user}}}:sessions", f"gk:{{{user}}}:index", f"gk:{{{user}}}:not_before"

    @staticmethod
    def pairs(user: str = "74") -> str:
        """The key of the pairs that replaced refresh tokens."""
        return f"gk:{{{user}}}:pairs"

    def let_pass(self, seconds: float, user: str = "74", *, only: int | None = None) -> None:
        """Makes everything of the user older by that much, the due index too; or one session alone. The
        keys' own times to live stay."""
        self._run(_LET_PASS, user, round(seconds * 1e6), "" if only is None else only)
        if only is None and self.redis.zscore(DUE, user) is not None:
            self.redis.zincrby(DUE, -round(seconds * 1e6), user)

    def write(self, session_id: int, field: str, value: float | str | bytes, user: str = "74") -> None:
        """Replaces one field of a record."""
        kind = "string" if isinstance(value, str | bytes) else "nan" if value != value else "number"
        text = value if isinstance(value, str | bytes) else f"{value:.0f}" if abs(value) < 1e300 else repr(value)
        self._run(_SET_FIELD, user, session_id, _FIELDS[field], text, kind)

    def activity(self, session_id: int, at: float, user: str = "74") -> None:
        """Sets the last activity, in microseconds."""
        self._run(_SCORE, user, session_id, at)

    def unindex(self, *session_ids: int, user: str = "74") -> None:
        """Takes entries out of the index."""
        self._run(_SCORE, user, *(word for each in session_ids for word in (each, "")))

    def index(self, user: str = "74") -> dict[int, float]:
        """The scores of the index, by session."""
        flat: Any = self._run(_SCORES, user)
        return {int(each): float(score) for each, score in zip(flat[::2], flat[1::2], strict=True)}

    def rename(self, session_id: int, new: int, reference: str, user: str = "74") -> None:
        """Gives a session another id."""
        sessions = self.keys(user)[0]
        record: Any = self.redis.hget(sessions, str(session_id))
        self.redis.hset(sessions, mapping={str(new): record, f"r:{reference}": str(new)})
        self._run(_SCORE, user, new, self.index(user)[session_id], session_id, "")
        self.redis.hdel(sessions, str(session_id))

    def records(self, user: str = "74") -> int:
        """Counts the records, ended ones too."""
        return sum(field.isdigit() for field in self.fields(user))

    def references(self, user: str = "74") -> int:
        return sum(field.startswith("r:") for field in self.fields(user))

    def named(self, user: str = "74") -> int:
        """Counts the sessions that have more than a record."""
        return sum(field.startswith("m:") for field in self.fields(user))

    def fields(self, user: str = "74") -> set[str]:
        """The fields of the `sessions` key that are of one session: records by their ids, names with `r:` and `f:`,
        and more (common.lua)."""
        found: Any = self.redis.hkeys(self.keys(user)[0])
        return {field.decode() for field in found} - {"i", "b"}

    def owner(self, field: str, user: str = "74") -> int:
        """The id of the session with a name (`r:…`, `f:…`), 0 for none."""
        found: Any = self.redis.hget(self.keys(user)[0], field)
        return int(found or 0)

    def older_names(self, session_id: int, user: str = "74") -> list[str]:
        packed: Any = self.redis.hget(self.keys(user)[0], f"t:{session_id}")
        return [name for name, _ in msgspec.msgpack.decode(packed)] if packed else []

    def name(self, session_id: int, names: Sequence[str], *, expire_in: float, user: str = "74") -> None:
        """Replaces the older names of a session; the oldest come first."""
        at = round((time.time() + expire_in) * 1e6)
        self._run(_NAME, user, session_id, *(part for name in names for part in (name, at)))

    def index_in_key(self, user: str = "74") -> None:
        """Gives the user the key for an index that a user with many sessions has."""
        self._run(_IN_KEY, user)

    def indexed_live(self, user: str = "74") -> int:
        """Counts the sessions that the index calls live."""
        return sum(score > 0 for score in self.index(user).values())

    def hint(self, user: str = "74") -> float:
        """The instant at which the user is due for a clean-up, in seconds since 1970."""
        due: Any = self.redis.zscore(DUE, user)
        return float(due) / 1e6

    def leaves_at(self, key: str) -> float:
        """The instant at which a key expires, in seconds since 1970."""
        instant: Any = self.redis.pexpiretime(key)
        return float(instant) / 1_000

    def needed_until(self, key: str) -> float:
        """The instant until which a key is needed: it stays a day longer, lest a clock that jumps deletes it."""
        return self.leaves_at(key) - SPARE_SECONDS

    def names(self) -> set[bytes]:
        """Every key in the store except those of the audit log."""
        found: Any = self.redis.keys("*")
        audit_log = (b":outbox", b"gk:outboxes", b"gk:audit", b"gk:audit:routine")
        return {name for name in found if not name.endswith(audit_log)}

    def _run(self, script: str, user: str, *arguments: Any) -> Any:
        return self.redis.eval(_RECORDS + script, 4, *self.keys(user), self.pairs(user), *arguments)
