-- check: a verified token asks to pass. Finds its session, judges it and moves its activity, or opens one.
-- A caller that has seen the token before leaves out what only an opening needs (ARGV from 13 on).
-- Answers {KEYS[1], 'touched' | 'opened', id, '', evicted}
--         {KEYS[1], 'ended', id, end reason, 0}   the session is over
--         {KEYS[1], 'unknown', '0', '', 0}        there is none, and this token may not open one
--         {KEYS[1], 'full', '0', '', 0}           no room, policy `reject`
--         {KEYS[1], 'absent', '0', '', 0}         there is none, and what an opening needs was left out

local reference, jti = ARGV[1], ARGV[2]
local issued_at, token_expires_at = tonumber(ARGV[3]), tonumber(ARGV[4])
local idle, ttl, ended_ttl = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local limit, policy = tonumber(ARGV[8]), ARGV[9]
local unknown, new_id, exempt = ARGV[10], ARGV[11], tonumber(ARGV[12])
local login_method, ip_address, user_agent, hints = ARGV[13], ARGV[14], ARGV[15], ARGV[16]
local city, country = ARGV[17], ARGV[18]

local function answer(word, id, reason, evicted)
  return {sessions, word, id, reason or '', evicted or 0}
end

-- A session is mute when every token known of it has expired: nobody can speak for it again.
local function goes_first(a, b)
  local mute_a, mute_b = a[2][TOKEN_EXPIRES_AT] <= now, b[2][TOKEN_EXPIRES_AT] <= now
  if mute_a ~= mute_b then return mute_a end
  if policy == 'evict_idle' and a[3] ~= b[3] then return a[3] < b[3] end
  if a[2][CREATED_AT] ~= b[2][CREATED_AT] then return a[2][CREATED_AT] < b[2][CREATED_AT] end
  return tonumber(a[1]) < tonumber(b[1])
end

-- Makes room for one more session; the number evicted, or nil where the policy says no. Of more than STEP sessions only
-- the least active are looked at: should there be so many because the limit was lowered, the rest goes at the next
-- openings.
local function make_room()
  if limit == 0 or exempt == 1 then return 0 end
  if redis.call('ZCOUNT', index, '(0', '+inf') < limit then return 0 end
  local others, last = live(idle, ended_ttl, true)
  local surplus = #others + 1 - limit
  if last then surplus = surplus + redis.call('ZCOUNT', index, '(' .. text(last), '+inf') end
  if surplus <= 0 then return 0 end
  table.sort(others, goes_first)
  if policy == 'reject' and (surplus > #others or others[surplus][2][TOKEN_EXPIRES_AT] > now) then return nil end
  surplus = math.min(surplus, #others)
  for i = 1, surplus do
    finish(others[i][1], others[i][2], others[i][3], now, 'evicted', 0, ended_ttl)
  end
  return surplus
end

local function open()
  start_anew_if_lost()
  if unknown == 'reject' or (before > 0 and issued_at <= before) then return answer('unknown', '0') end
  if not login_method then return answer('absent', '0') end
  forget()
  local evicted = make_room()
  if not evicted then return answer('full', '0') end
  -- Silent for longer than a session may live: over, whether or not a limit or a list ever looks at them.
  sweep(idle, ended_ttl, 20, math.max(before, now - ttl))
  local id = new_id
  while redis.call('HEXISTS', sessions, id) == 1 do id = text(tonumber(id) % 9007199254740991 + 1) end
  local created_at = math.max(now, before + 1)
  local expires_at = created_at + ttl
  save(id, {created_at, expires_at, token_expires_at, exempt, 0, '', 0, 0,
            reference, jti, login_method, ip_address, user_agent, hints, city, country})
  redis.call('HSET', sessions, 'r:' .. reference, id)
  redis.call('ZADD', index, text(created_at), id)
  keep_until(math.max(expires_at + ended_ttl, token_expires_at))
  return answer('opened', id, '', evicted)
end

local id = redis.call('HGET', sessions, 'r:' .. reference)
if not id then return open() end
local record = load(id)
-- A reference without a record, or a live record that the index does not call live, is damage. It opens nothing.
if not record then return answer('unknown', '0') end
if record[ENDED_AT] > 0 then
  remember(id, record, token_expires_at)
  return answer('ended', id, record[END_REASON])
end
local last_activity = tonumber(redis.call('ZSCORE', index, id) or '0')
if last_activity <= 0 then return answer('unknown', '0') end

local newer, exempted = token_expires_at > record[TOKEN_EXPIRES_AT], exempt ~= record[EXEMPT]
if newer then record[TOKEN_EXPIRES_AT], record[JTI] = token_expires_at, jti end
-- Whether it is idle was settled before this request, so not by who asks now.
local at, reason = due(id, record, last_activity, idle)
if at then
  settle(id, record, last_activity, at, reason, ended_ttl)
  return answer('ended', id, reason)
end
if newer or exempted then
  record[EXEMPT] = exempt
  save(id, record)
  keep_until(token_expires_at)
end
redis.call('ZADD', index, text(math.max(now, last_activity + 1)), id)
return answer('touched', id)
