-- Shared by every script that does more than find one session: follows common.lua.

rules = cmsgpack.unpack(string.sub(ARGV[1], 25))
read_not_before(redis.call('GET', not_before))
read_not_before(redis.call('HGET', sessions, 'b'))

-- The rest of the index: what only few checks need

local function remove_score(id)
  local entries = redis.call('HGET', sessions, 'i')
  if not entries then return end
  if entries == IN_KEY then
    redis.call('ZREM', index, id)
    if redis.call('EXISTS', index) == 0 then redis.call('HDEL', sessions, 'i', 'b') end
    return
  end
  local place = place_of(id, entries)
  if not place then return end
  entries = string.sub(entries, 1, place - 1) .. string.sub(entries, place + 16)
  if entries ~= '' then
    redis.call('HSET', sessions, 'i', entries)
  else
    -- Without sessions, `b` would be all that is left.
    redis.call('HDEL', sessions, 'i', 'b')
    redis.call('DEL', index)
  end
end

-- Whether a score is beyond a bound, which is written as Redis has it: '+inf', '-inf', '(' for exclusive.
local function within(from, to)
  local function read(bound)
    local exclusive = string.sub(bound, 1, 1) == '('
    if exclusive then bound = string.sub(bound, 2) end
    return bound == '+inf' and math.huge or bound == '-inf' and -math.huge or tonumber(bound), exclusive
  end
  local low, above = read(from)
  local high, below = read(to)
  return function(score)
    return (score > low or score == low and not above) and (score < high or score == high and not below)
  end
end

-- Ids and scores in turn, as ZRANGEBYSCORE has them, and as ZREVRANGEBYSCORE where `descending`: `limit` at the most.
-- With `skipped`, all but so many, by rank.
local function scores(from, to, limit, descending, skipped)
  local entries = redis.call('HGET', sessions, 'i') or ''
  if entries == IN_KEY then
    if skipped then return redis.call('ZRANGE', index, text(skipped), text(skipped + limit - 1), 'WITHSCORES') end
    local command = 'ZRANGEBYSCORE'
    if descending then command, from, to = 'ZREVRANGEBYSCORE', to, from end
    return redis.call(command, index, from, to, 'WITHSCORES', 'LIMIT', 0, limit)
  end
  local matches, found, flat = within(from, to), {}, {}
  for at = 1, #entries, 16 do
    local id, score = struct.unpack('>dd', entries, at)
    if matches(score) then found[#found + 1] = {text(id), score} end
  end
  table.sort(found, function(a, b)
    if descending then a, b = b, a end
    if a[2] ~= b[2] then return a[2] < b[2] end
    return a[1] < b[1]
  end)
  for at = 1 + (skipped or 0), math.min(#found, (skipped or 0) + limit) do
    flat[#flat + 1], flat[#flat + 2] = found[at][1], found[at][2]
  end
  return flat
end

local function count_scores(from, to)
  if redis.call('HGET', sessions, 'i') == IN_KEY then return redis.call('ZCOUNT', index, from, to) end
  return #scores(from, to, MOST_IN_FIELD) / 2
end

-- The record of an entry of the index. An entry without a record is removed.
local function entry(id)
  local record = load(id)
  if not record then remove_score(id) end
  return record
end

-- Records that the store has lost the sessions of this user. No actor did it, and which sessions there were is unknown.
local function record_sessions_lost(now)
  append_to_outbox({'sessions_lost', '0', now, '', ''})
end

-- Writes both copies: should the store lose one of them, the other one holds.
local function write_not_before()
  local value = text(before) .. ' ' .. spared .. ' ' .. before_reason
  if tokens_before ~= before then value = value .. ' ' .. text(tokens_before) end
  redis.call('SET', not_before, value)
  if redis.call('EXISTS', sessions) == 1 then redis.call('HSET', sessions, 'b', value) end
end

-- Sets not_before: every session created until `instant` has ended, except `spared_id`, and every token issued until now
-- opens none. The instant may be later than now: sessions can have activity of a clock that was ahead.
local function end_all_before(instant, spared_id, reason)
  tokens_before = math.max(tokens_before, token_now)
  before, spared, before_reason = math.max(instant, before), spared_id, reason
  write_not_before()
end

-- A store that evicts under memory pressure, or another program, can take one key of a user and leave the others. Where
-- KEYS[2] is there and the hash is not, or the hash is there without its index, what is lost may have been the end of a
-- session, so the user starts anew, as after an end of all sessions. Every script calls this, except a check that finds
-- its session intact. A hash that is lost before any session of it has ended leaves nothing, and its tokens open sessions.
local function start_anew_if_lost()
  local entries = redis.call('HGET', sessions, 'i')
  if entries then
    if entries ~= IN_KEY or redis.call('EXISTS', index) == 1 then return end
  elseif redis.call('EXISTS', sessions, index) == 0 then
    return
  end
  end_all_before(now, '0', 'revoked_by_admin')
  redis.call('DEL', sessions, index)
  announce('*0', before_reason)
  record_sessions_lost(now)
end

-- The state of a session, without a touch: 'live', its record and last activity; or 'ended' and its record, after settling
-- a session that turns out to be over; or 'doubtful' with the values of a live one, where due() held its end back. Nil
-- where there is none, or where it is damaged.
local function state(id)
  local record = id and load(id)
  if not record then return nil end
  if record[ENDED_AT] > 0 then return 'ended', record end
  local last_activity = score_of(id) or 0
  if last_activity <= 0 then return nil end
  doubtful = false
  local at, reason = due(id, record, last_activity)
  if not at then return doubtful and 'doubtful' or 'live', record, last_activity end
  settle(id, record, last_activity, at, reason)
  return 'ended', record
end

-- ended → ended, or live → live: an older token of this session's reference was refused (EARLIER), and the record stays
-- until that token has expired.
local function keep_earlier(id, record, token_expires_at)
  local earlier = record[EARLIER]
  if token_expires_at <= earlier[5] then return end
  earlier[5] = token_expires_at
  save(id, record)
  local score = score_of(id) or 0
  if score < 0 and -score < token_expires_at then set_score(id, -token_expires_at) end
  if score ~= 0 then keep_until(token_expires_at) end
end

-- No login is followed back through more sessions of one reference than this.
local MOST_EARLIER = 20

-- The id of the session that an access token names, and its record: of the one under its reference, or of an ended one
-- that had the reference before (EARLIER). Of that one the end reason too, and the record is nil once it was forgotten.
local function session_of(reference, issued_at, digest, token_expires_at)
  local id = redis.call('HGET', sessions, 'r:' .. reference) or redis.call('HGET', sessions, 'x:' .. reference)
  local record = id and load(id)
  local newest, newest_record, reason = id, record, nil
  local handed_out_by = record and record[EARLIER] and redis.call('HGET', sessions, 'p:' .. digest)
  for _ = 1, MOST_EARLIER do
    local earlier = record and record[EARLIER]
    if not earlier or earlier[1] ~= reference or issued_at > earlier[2] or handed_out_by == id then break end
    id, reason = earlier[3], earlier[4]
    record = load(id)
  end
  if id ~= newest then keep_earlier(newest, newest_record, token_expires_at) end
  return id, record, reason
end

-- When a live session will be over if nothing more happens to it.
local function over_at(record, last_activity)
  if rules.idle > 0 and record[EXEMPT] == 0 then return math.min(record[EXPIRES_AT], last_activity + rules.idle) end
  return record[EXPIRES_AT]
end

-- An id that no session of this user has: `id`, or the next free one after it.
local function unused_id(id)
  while redis.call('HEXISTS', sessions, id) == 1 do id = text(tonumber(id) % 9007199254740991 + 1) end
  return id
end

-- A record from named fields, as a live one. What is left out is empty.
local function new_record(fields)
  return {fields.created_at, fields.expires_at, fields.token_expires_at, fields.exempt or 0, 0, '', 0, 0,
          fields.refresh_expires_at or 0, fields.reference, fields.jti, fields.login_method, fields.refresh or '',
          fields.ip_address or '', fields.user_agent or '', fields.hints or '', fields.city or '', fields.country or '',
          fields.earlier}
end

-- Removes a name of a session, unless it names another one by now (an `h:` reference can).
local function unname(id, field)
  if redis.call('HGET', sessions, field) == id then redis.call('HDEL', sessions, field) end
end

-- Removes the names of tokens that a session had no room for (renew.lua).
local function forget_surplus(id)
  if redis.call('HDEL', sessions, 'n:' .. id) == 0 then return end
  for _, field in ipairs(redis.call('HKEYS', sessions)) do
    if string.sub(field, 1, 2) == 'x:' then unname(id, field) end
  end
end

-- A session with this many unexpired access tokens gets no more: each may open a session if it is forgotten.
local MOST_TOKENS = 1000

local function has_every_token_it_may(id)
  local names, alive = redis.call('HGET', sessions, 't:' .. id), 0
  for _, name in ipairs(names and cmsgpack.unpack(names) or {}) do
    if string.sub(name[1], 1, 2) == 'r:' and name[2] > now then alive = alive + 1 end
  end
  return alive >= MOST_TOKENS
end

-- What only lists show of a session, packed as {client, user name, given name}; '' where there is none of it.
local function particulars(id)
  return redis.call('HGET', sessions, 'm:' .. id) or ''
end

-- ended → (nothing), 20 sessions at the most.
local function forget()
  if apart then return end
  local entries = scores(text(-now), '(0', 20)
  for i = 1, #entries, 2 do
    local id = entries[i]
    local record = load(id)
    if record then
      unname(id, 'r:' .. record[REFERENCE])
      unname(id, 'f:' .. record[REFRESH])
    end
    local older = redis.call('HGET', sessions, 't:' .. id)
    if older then
      for _, name in ipairs(cmsgpack.unpack(older)) do unname(id, name[1]) end
    end
    forget_surplus(id)
    redis.call('HDEL', sessions, id, 't:' .. id, 'c:' .. id, 'u:' .. id, 'm:' .. id)
    remove_score(id)
  end
end

-- The live sessions, newest activity first (oldest first with `ascending`), as {id, record, last_activity}; settles those
-- that turn out to be over. Looks at STEP sessions at the most; where there may be more, the second value is the activity
-- of the last one looked at. A session last active until `not_before` has ended, unless it is the spared one, so it is
-- not looked at.
local function live(ascending)
  local found = {}
  local function look(id, last_activity)
    local record = entry(id)
    if not record then return end
    local at, reason = due(id, record, last_activity)
    if at then
      settle(id, record, last_activity, at, reason)
    else
      found[#found + 1] = {id, record, last_activity}
    end
  end
  local spared_activity = before > 0 and score_of(spared) or 0
  local spared_is_old = spared_activity > 0 and spared_activity <= before
  if ascending and spared_is_old then look(spared, spared_activity) end
  local entries = scores('(' .. text(before), '+inf', STEP, not ascending)
  for i = 1, #entries, 2 do look(entries[i], tonumber(entries[i + 1])) end
  if not ascending and spared_is_old then look(spared, spared_activity) end
  return found, #entries == 2 * STEP and tonumber(entries[#entries])
end

-- Settles sessions last active until `instant` that are over, `step` at the most.
local function sweep(step, instant)
  local entries = scores('(0', text(instant), step)
  for i = 1, #entries, 2 do
    local id, last_activity = entries[i], tonumber(entries[i + 1])
    local record = entry(id)
    if record then
      local at, reason = due(id, record, last_activity)
      if at then settle(id, record, last_activity, at, reason) end
    end
  end
end

-- The `sid` in a reference, and ':' where an `auth_time` follows it. A reference of `h:` and 64 hexadecimal digits has none.
local function sid_of(reference)
  if #reference == 66 and string.match(reference, '^h:%x+$') then return nil end
  return string.match(reference, '^([^:]+)(:?)')
end

-- The id and the end reason of the record by which end_sid.lua remembers that an identity provider ended a `sid`, if that
-- covers a token which was never seen; else nil. The record has the reference `<sid>:`, which no token has. Where tokens
-- carry `auth_time` too, each sign-in is a session of its own (`<sid>:<auth_time>`), and those issued later are not
-- covered; tokens with a `sid` alone all are, because nothing tells one sign-in from the next.
local function signed_out_at_the_provider(reference, issued_at)
  local sid, one_of_several = sid_of(reference)
  local id = sid and redis.call('HGET', sessions, 'r:' .. sid .. ':')
  local record = id and load(id)
  if record and (one_of_several == '' or issued_at <= record[ENDED_AT]) then return id, record[END_REASON] end
end
