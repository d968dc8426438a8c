-- check: a verified token asks to pass. Finds its session, judges it and moves its activity, or opens one.
-- A caller that has seen the token before leaves out what only an opening needs (ARGV from 13 on, who acts last).
-- Answers {KEYS[1], 'touched' | 'opened', id, '', evicted}
--         {KEYS[1], 'ended', id, end reason, 0}   the session is over
--         {KEYS[1], 'unknown', '0', '', 0}        there is none, and this token may not open one
--         {KEYS[1], 'full', '0', '', 0}           no room, policy `reject`
--         {KEYS[1], 'absent', '0', '', 0}         there is none, and what an opening needs was left out
--         {KEYS[1], 'lost', '0', '', 0}           there is none, and the store has lost data since the caller looked
-- This is the script of every request, so it comes before what only an opening needs: adopt.lua.

local reference, jti, token_expires_at = ARGV[1], ARGV[2], tonumber(ARGV[4])
local idle, ended_ttl, exempt = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[12])

local id = redis.call('HGET', sessions, 'r:' .. reference)
if id then
  local record = load(id)
  -- A reference without a record, or a live record that the index does not call live, is damage. It opens nothing.
  if not record then return {sessions, 'unknown', '0', '', 0} end
  if record[ENDED_AT] > 0 then
    remember(id, record, token_expires_at)
    return {sessions, 'ended', id, record[END_REASON], 0}
  end
  local last_activity = tonumber(redis.call('ZSCORE', index, id) or '0')
  if last_activity <= 0 then return {sessions, 'unknown', '0', '', 0} end

  local newer, exempted = token_expires_at > record[TOKEN_EXPIRES_AT], exempt ~= record[EXEMPT]
  local seen_until = record[TOKEN_EXPIRES_AT]
  if newer then record[TOKEN_EXPIRES_AT], record[JTI] = token_expires_at, jti end
  -- Whether it is idle was settled before this request, so not by who asks now.
  local at, reason = due(id, record, last_activity, idle)
  if at then
    settle(id, record, last_activity, at, reason, ended_ttl)
    return {sessions, 'ended', id, reason, 0}
  end
  if newer or exempted then
    record[EXEMPT] = exempt
    if newer and record[REFERENCE] ~= reference then
      -- The newest token goes by an older name: so that is the newest, and lives as long.
      local names = cmsgpack.unpack(redis.call('HGET', sessions, 't:' .. id) or cmsgpack.pack({}))
      for _, name in ipairs(names) do
        if name[1] == 'r:' .. reference then name[1], name[2] = 'r:' .. record[REFERENCE], seen_until end
      end
      redis.call('HSET', sessions, 't:' .. id, cmsgpack.pack(names))
      record[REFERENCE] = reference
    end
    save(id, record)
    keep_until(token_expires_at)
  end
  redis.call('ZADD', index, text(math.max(now, last_activity + 1)), id)
  return {sessions, 'touched', id, '', 0}
end
