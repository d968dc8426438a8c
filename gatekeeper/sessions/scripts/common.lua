-- The law of a session. Every script begins with this text; nothing outside these scripts changes a session.
--
-- What there is, for one user, in one hash slot:
--   KEYS[1] sessions    hash    <id>          → the record (below), packed
--                               r:<reference> → <id>: which session a token names
--   KEYS[2] index       zset    <id>, score > 0: live, the score is its last activity
--                                     score < 0: ended, minus the instant from which the record may be forgotten
--   KEYS[3] not_before  string  "<instant> <spared id or 0> <end reason>": every session created until that instant
--                               counts as ended, the spared one excepted; it has no time to live, because a token
--                               of before it may turn up however late
--
-- The states are live and ended, with one of eight reasons. The moves:
--   (nothing) → live       check.lua alone, for a token that not_before does not refuse
--   (nothing) → ended      logout.lua, for a token that was never seen: so it cannot be adopted afterwards
--   live      → live       check.lua: the activity moves forward, strictly
--   live      → ended      any script, once; `reason` and `ended_at` are final
--   ended     → ended      nothing changes but `hidden` (0 → 1) and how long the record stays (longer)
--   ended     → (nothing)  forget(), when the last token known of it has expired
--   any       → (nothing)  where the store itself has lost one of the first two keys: then all that is left of the user
--                          goes, and not_before refuses every token of before
-- What is not listed does not happen: there is no move from ended to live.
--
-- Time is the server's, in microseconds. Whole numbers up to 2^53 are exact in Lua; '%.0f' prints them.

local sessions, index, not_before = KEYS[1], KEYS[2], KEYS[3]

-- The fields of a record, by position. `TOKEN_EXPIRES_AT` is the latest of all tokens seen, leeway included.
local CREATED_AT, EXPIRES_AT, TOKEN_EXPIRES_AT, EXEMPT = 1, 2, 3, 4
local ENDED_AT, END_REASON, HIDDEN, LAST_ACTIVITY = 5, 6, 7, 8
local REFERENCE, JTI = 9, 10

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
  for field = CREATED_AT, LAST_ACTIVITY do
    if field ~= END_REASON and not (record[field] >= 0 and record[field] <= 9007199254740992) then
      error('a record is garbled')
    end
  end
  return record
end

-- The record of an entry of the index. An entry without one stands for nothing.
local function entry(id)
  local record = load(id)
  if not record then redis.call('ZREM', index, id) end
  return record
end

local function save(id, record)
  redis.call('HSET', sessions, id, cmsgpack.pack(record))
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

-- A store that evicts under memory pressure can lose one key of two, which live and leave together. What it lost may have
-- been an end, so the user starts anew, as after an end of all sessions. Every script asks, but for a check that finds
-- its session whole.
local function start_anew_if_lost()
  if redis.call('EXISTS', sessions, index) ~= 1 then return end
  before, spared, before_reason = math.max(now, before), '0', 'revoked_by_admin'
  redis.call('SET', not_before, text(before) .. ' 0 ' .. before_reason)
  redis.call('DEL', sessions, index)
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

-- live → ended. A record stays `ended_ttl`, and at least until its last known token has expired.
local function finish(id, record, last_activity, at, reason, hidden, ended_ttl)
  record[ENDED_AT], record[END_REASON], record[HIDDEN] = at, reason, hidden
  record[LAST_ACTIVITY] = last_activity
  save(id, record)
  local forget_at = math.max(now + ended_ttl, record[TOKEN_EXPIRES_AT])
  redis.call('ZADD', index, text(-forget_at), id)
  keep_until(forget_at)
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

-- ended → (nothing), a few at a time.
local function forget()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, text(-now), '(0', 'LIMIT', 0, 20)) do
    local record = load(id)
    if record and redis.call('HGET', sessions, 'r:' .. record[REFERENCE]) == id then
      redis.call('HDEL', sessions, 'r:' .. record[REFERENCE])
    end
    redis.call('HDEL', sessions, id)
    redis.call('ZREM', index, id)
  end
end

-- The live sessions, newest activity first (or oldest first, with `ascending`), as {id, record, last_activity}; those
-- that turn out to be over are settled on the way. Looks at `STEP` sessions at the most; the second value is the
-- activity of the last one looked at, where there may be more. What was last active until `not_before` is over, the
-- spared session excepted, so it is not even looked at.
local function live(idle, ended_ttl, ascending)
  local found = {}
  local function look(id, last_activity)
    local record = entry(id)
    if not record then return end
    local at, reason = due(id, record, last_activity, idle)
    if at then
      settle(id, record, last_activity, at, reason, ended_ttl)
    else
      found[#found + 1] = {id, record, last_activity}
    end
  end
  local spared_activity = before > 0 and tonumber(redis.call('ZSCORE', index, spared) or '0') or 0
  local spared_is_old = spared_activity > 0 and spared_activity <= before
  if ascending and spared_is_old then look(spared, spared_activity) end
  local command, from, to = 'ZREVRANGEBYSCORE', '+inf', '(' .. text(before)
  if ascending then command, from, to = 'ZRANGEBYSCORE', to, from end
  local entries = redis.call(command, index, from, to, 'WITHSCORES', 'LIMIT', 0, STEP)
  for i = 1, #entries, 2 do look(entries[i], tonumber(entries[i + 1])) end
  if not ascending and spared_is_old then look(spared, spared_activity) end
  return found, #entries == 2 * STEP and tonumber(entries[#entries])
end

-- What was last active until `instant`, and is over, becomes so in the records too, a step at a time.
local function sweep(idle, ended_ttl, step, instant)
  local entries = redis.call('ZRANGEBYSCORE', index, '(0', text(instant), 'WITHSCORES', 'LIMIT', 0, step)
  for i = 1, #entries, 2 do
    local id, last_activity = entries[i], tonumber(entries[i + 1])
    local record = entry(id)
    if record then
      local at, reason = due(id, record, last_activity, idle)
      if at then settle(id, record, last_activity, at, reason, ended_ttl) end
    end
  end
end
