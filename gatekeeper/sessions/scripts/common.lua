-- The law of a session. Every script of sessions begins with audit.lua and this text; nothing else changes a session.
--
-- What there is, for one user, in one hash slot:
--   KEYS[1] sessions    hash    <id>          → the record (below), packed
--                               r:<reference> → <id>: which session an access token names
--                               f:<digest>    → <id>: which session a refresh token names, by its SHA-256
--                               t:<id>        → the older names of a session, packed: {field, when its token expires}, …
--                               c:<id>        → the claims that its access tokens are issued with, as JSON
--   KEYS[2] index       zset    <id>, score > 0: live, the score is its last activity
--                                     score < 0: ended, minus the instant from which the record may be forgotten
--   KEYS[3] not_before  string  "<instant> <spared id or 0> <end reason>": every session created until that instant
--                               counts as ended, the spared one excepted; it has no time to live, because a token
--                               of before it may turn up however late
--   KEYS[4] outbox      list    what the audit trail is to tell: audit.lua
--
-- The states are live and ended, with one of eight reasons. The moves:
--   (nothing) → live       check.lua and refreshed.lua, for a token that not_before does not refuse; login.lua, for any
--   (nothing) → ended      logout.lua and end_sid.lua, for what was never seen: so it cannot be adopted afterwards
--   live      → live       check.lua, login.lua, refreshed.lua, rotate.lua, find.lua: the activity moves forward,
--                          strictly, and names are added; a name that is known never moves to another session, but for what a login
--                          answers again: a refresh token, and an `h:` reference whose session is over (of such tokens
--                          nothing tells one sign-in from the next); streams.lua: the activity alone
--   live      → ended      any script, once; `reason` and `ended_at` are final
--   ended     → ended      nothing changes but `hidden` (0 → 1) and how long the record stays (longer)
--   ended     → (nothing)  forget(), when the last token known of it, refresh tokens included, has expired
--   any       → (nothing)  where the store itself has lost one of the first two keys: then all that is left of the user
--                          goes, and not_before refuses every token of before
-- What is not listed does not happen: there is no move from ended to live.
--
-- Time is the server's, in microseconds. Whole numbers up to 2^53 are exact in Lua; '%.0f' prints them.

local sessions, index, not_before = KEYS[1], KEYS[2], KEYS[3]

-- The fields of a record, by position. `TOKEN_EXPIRES_AT` is the latest of all access tokens seen, leeway included, and
-- `REFRESH_EXPIRES_AT` of all refresh tokens, 0 without any. `REFERENCE`, `JTI` and `REFRESH` are those of the newest.
-- Five more say who opened the session, and no script asks: address, user agent (bytes: sessions/user_agents.py), client
-- hints, city, country.
local CREATED_AT, EXPIRES_AT, TOKEN_EXPIRES_AT, EXEMPT = 1, 2, 3, 4
local ENDED_AT, END_REASON, HIDDEN, LAST_ACTIVITY, REFRESH_EXPIRES_AT = 5, 6, 7, 8, 9
local REFERENCE, JTI, LOGIN_METHOD, REFRESH = 10, 11, 12, 13

-- No script does more than this many sessions' work in one go: what remains is done by the next one.
local STEP = 1000

local function text(number)
  return string.format('%.0f', number)
end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local before, spared, before_reason = 0, '0', ''
local stored_before = redis.call('GET', not_before)
if stored_before then
  local at
  at, spared, before_reason = string.match(stored_before, '^(%d+) (%d+) ([a-z_]+)$')
  before = tonumber(at)
end

-- A record that another program wrote or garbled fails the script, and so admits nobody: NaN, for one, is neither before
-- nor after any instant, and would never expire.
local function load(id)
  local packed = redis.call('HGET', sessions, id)
  if not packed then return nil end
  local record = cmsgpack.unpack(packed)
  if record[JTI] == true then record[JTI] = record[REFERENCE] end
  for field = CREATED_AT, REFRESH_EXPIRES_AT do
    if field ~= END_REASON and not (record[field] >= 0 and record[field] <= 9007199254740992) then
      error('a record is garbled')
    end
  end
  return record
end

-- A `jti` that is the reference stands there once: `true` is that one byte.
local function save(id, record)
  local jti = record[JTI]
  if jti == record[REFERENCE] then record[JTI] = true end
  redis.call('HSET', sessions, id, cmsgpack.pack(record))
  record[JTI] = jti
end

-- Keys leave by themselves, never before `instant`.
local function keep_until(instant)
  local milliseconds = math.ceil((instant - now) / 1000) + 1
  for _, key in ipairs({sessions, index}) do
    if redis.call('PTTL', key) < milliseconds then
      redis.call('PEXPIRE', key, text(milliseconds))
    end
  end
end

-- When and why a live session ended without anybody saying so: the earliest that applies, or nil.
local function due(id, record, last_activity, idle)
  local at, reason
  if record[CREATED_AT] <= before and id ~= spared then
    at, reason = before, before_reason
  end
  if record[EXPIRES_AT] <= now and (not at or record[EXPIRES_AT] < at) then
    at, reason = record[EXPIRES_AT], 'expired'
  end
  local idle_at = last_activity + idle
  if idle > 0 and record[EXEMPT] == 0 and idle_at <= now and (not at or idle_at < at) then
    at, reason = idle_at, 'idle'
  end
  return at, reason
end

-- Says to whoever holds open streams of the user that they are over: those of the session `whom`, or of all but one
-- (`*<id>`). Who does not hear it finds out by asking (streams.lua), so that a store which forbids the channel to us
-- (ACL) fails no end: hence pcall.
local function announce(whom, reason)
  redis.pcall('PUBLISH', string.match(sessions, '^[^{]*') .. 'ends', whom .. ' ' .. reason .. ' ' .. sessions)
end

-- live → ended, without a word. A record stays `ended_ttl`, and at least until its last known token has expired.
local function record_end(id, record, last_activity, at, reason, hidden, ended_ttl)
  record[ENDED_AT], record[END_REASON], record[HIDDEN] = at, reason, hidden
  record[LAST_ACTIVITY] = last_activity
  save(id, record)
  local forget_at = math.max(now + ended_ttl, record[TOKEN_EXPIRES_AT], record[REFRESH_EXPIRES_AT])
  redis.call('ZADD', index, text(-forget_at), id)
  keep_until(forget_at)
  tell_ended(id, at, reason, now, {jti = record[JTI], reference = record[REFERENCE], expires_at = record[TOKEN_EXPIRES_AT]})
end

-- live → ended, told to everybody.
local function finish(id, record, last_activity, at, reason, hidden, ended_ttl)
  record_end(id, record, last_activity, at, reason, hidden, ended_ttl)
  announce(id, reason)
end

-- As finish(), for a session that is over without anybody having said so. What "end all" ended is out of every list.
local function settle(id, record, last_activity, at, reason, ended_ttl)
  local hidden = (reason == 'revoked_by_user' or reason == 'revoked_by_admin') and 1 or 0
  finish(id, record, last_activity, at, reason, hidden, ended_ttl)
end

-- ended → ended: a token that is refused is known from then on, and the record stays until it has expired.
local function remember(id, record, token_expires_at)
  local score = token_expires_at > record[TOKEN_EXPIRES_AT] and redis.call('ZSCORE', index, id)
  -- An index that is lost is not begun again by this one entry: see above.
  if not score then return end
  record[TOKEN_EXPIRES_AT] = token_expires_at
  save(id, record)
  if -tonumber(score) < token_expires_at then
    redis.call('ZADD', index, text(-token_expires_at), id)
    keep_until(token_expires_at)
  end
end
