-- What every script needs that does more than find one session: it follows the law, common.lua.

-- The record of an entry of the index. An entry without one stands for nothing.
local function entry(id)
  local record = load(id)
  if not record then redis.call('ZREM', index, id) end
  return record
end

-- Nobody's act, whoever found it out; which sessions there were, nobody knows any more.
local function tell_lost(now)
  leave_word({'sessions_lost', '0', now, '', ''})
end

-- A store that evicts under memory pressure can lose one key of two, which live and leave together. What it lost may have
-- been an end, so the user starts anew, as after an end of all sessions. Every script asks, but for a check that finds
-- its session whole.
local function start_anew_if_lost()
  if redis.call('EXISTS', sessions, index) ~= 1 then return end
  before, spared, before_reason = math.max(now, before), '0', 'revoked_by_admin'
  redis.call('SET', not_before, text(before) .. ' 0 ' .. before_reason)
  redis.call('DEL', sessions, index)
  announce('*0', before_reason)
  tell_lost(now)
end

-- A session by its id, judged and not touched: 'live' with its record and last activity; 'ended' with its record, where
-- it turns out to be over settled on the way; nil where there is none, or where it is damaged.
local function state(id, idle, ended_ttl)
  local record = id and load(id)
  if not record then return nil end
  if record[ENDED_AT] > 0 then return 'ended', record end
  local last_activity = tonumber(redis.call('ZSCORE', index, id) or '0')
  if last_activity <= 0 then return nil end
  local at, reason = due(id, record, last_activity, idle)
  if not at then return 'live', record, last_activity end
  settle(id, record, last_activity, at, reason, ended_ttl)
  return 'ended', record
end

-- An `h:` name may be another session's by now.
local function unname(id, field)
  if redis.call('HGET', sessions, field) == id then redis.call('HDEL', sessions, field) end
end

-- ended → (nothing), a few at a time.
local function forget()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, text(-now), '(0', 'LIMIT', 0, 20)) do
    local record = load(id)
    if record then
      unname(id, 'r:' .. record[REFERENCE])
      unname(id, 'f:' .. record[REFRESH])
    end
    local older = redis.call('HGET', sessions, 't:' .. id)
    if older then
      for _, name in ipairs(cmsgpack.unpack(older)) do unname(id, name[1]) end
    end
    redis.call('HDEL', sessions, id, 't:' .. id, 'c:' .. id)
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

-- The `sid` of a reference, and ':' where an `auth_time` follows; `h:` and 64 hexadecimal digits has none.
local function sid_of(reference)
  if #reference == 66 and string.match(reference, '^h:%x+$') then return nil end
  return string.match(reference, '^([^:]+)(:?)')
end

-- A provider that says "signed out" names a `sid`; of its tokens that carry `auth_time` too, each sign-in is a session of
-- its own (`<sid>:<auth_time>`). What remembers that word is a record that no token names, for it is called `<sid>:`. Of
-- tokens that were never seen, those issued before the word are over, and those that do not tell one sign-in from the
-- next. The id and the end reason of that record, or nil.
local function signed_out_at_the_provider(reference, issued_at)
  local sid, one_of_several = sid_of(reference)
  local id = sid and redis.call('HGET', sessions, 'r:' .. sid .. ':')
  local record = id and load(id)
  if record and (one_of_several == '' or issued_at <= record[ENDED_AT]) then return id, record[END_REASON] end
end
