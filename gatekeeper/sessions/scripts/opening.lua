-- What opens sessions and gives them names: it follows upkeep.lua in the scripts that do so.

local function tell_opened(id, at, login_method)
  leave_word({'session_opened', id, at, login_method, acting})
end

local function tell_refreshed(id, now)
  leave_word({'refreshed', id, now, '', acting})
end

local function tell_no_room(now)
  leave_word({'limit_refused', '0', now, '', acting})
end

-- A session is mute when every token known of it has expired: nobody can speak for it again.
local function goes_first(policy)
  local function mute(record)
    return record[TOKEN_EXPIRES_AT] <= now and record[REFRESH_EXPIRES_AT] <= now
  end
  return function(a, b)
    local mute_a, mute_b = mute(a[2]), mute(b[2])
    if mute_a ~= mute_b then return mute_a end
    if policy == 'evict_idle' and a[3] ~= b[3] then return a[3] < b[3] end
    if a[2][CREATED_AT] ~= b[2][CREATED_AT] then return a[2][CREATED_AT] < b[2][CREATED_AT] end
    return tonumber(a[1]) < tonumber(b[1])
  end, mute
end

-- Makes room for one more session, the one that `leaving` names not counted; the number evicted, or nil where the policy
-- says no. Of more than STEP sessions only the least active are looked at: should there be so many because the limit was
-- lowered, the rest goes at the next openings.
local function make_room(limit, policy, idle, ended_ttl, leaving)
  if limit == 0 then return 0 end
  if redis.call('ZCOUNT', index, '(0', '+inf') < limit then return 0 end
  local others, last = live(idle, ended_ttl, true)
  for i = #others, 1, -1 do
    if others[i][1] == leaving then table.remove(others, i) end
  end
  local surplus = #others + 1 - limit
  if last then surplus = surplus + redis.call('ZCOUNT', index, '(' .. text(last), '+inf') end
  if surplus <= 0 then return 0 end
  local before_another, mute = goes_first(policy)
  table.sort(others, before_another)
  if policy == 'reject' and (surplus > #others or not mute(others[surplus][2])) then return nil end
  surplus = math.min(surplus, #others)
  for i = 1, surplus do
    finish(others[i][1], others[i][2], others[i][3], now, 'evicted', 0, ended_ttl)
  end
  return surplus
end

-- (nothing) → live. `with` names what is to be known of the new session; `leaving` is a session that makes way for it.
-- Answers its id and how many were evicted, or nil where there is no room.
local function open(with, rules, leaving)
  forget()
  local evicted = make_room(with.exempt == 1 and 0 or rules.limit, rules.policy, rules.idle, rules.ended_ttl, leaving)
  if not evicted then
    tell_no_room(now)
    return nil
  end
  -- Silent for longer than a session may live: over, whether or not a limit or a list ever looks at them.
  sweep(rules.idle, rules.ended_ttl, 20, math.max(before, now - rules.ttl))
  local id = with.id
  while redis.call('HEXISTS', sessions, id) == 1 do id = text(tonumber(id) % 9007199254740991 + 1) end
  local created_at = math.max(now, before + 1)
  local expires_at = created_at + rules.ttl
  local refresh = with.refresh or ''
  local refresh_expires_at = refresh == '' and 0 or with.refresh_expires_at > 0 and with.refresh_expires_at or expires_at
  save(id, {created_at, expires_at, with.token_expires_at, with.exempt, 0, '', 0, 0, refresh_expires_at,
            with.reference, with.jti, with.login_method, refresh,
            with.ip_address, with.user_agent, with.hints, with.city, with.country})
  redis.call('HSET', sessions, 'r:' .. with.reference, id)
  if refresh ~= '' then redis.call('HSET', sessions, 'f:' .. refresh, id) end
  redis.call('ZADD', index, text(created_at), id)
  keep_until(math.max(expires_at + rules.ended_ttl, with.token_expires_at, refresh_expires_at))
  tell_opened(id, created_at, with.login_method)
  return id, evicted
end

-- More names than this no session needs: the oldest refresh tokens are forgotten first. Access tokens never are, for one
-- that is not known opens a session; who has so many alive at once is refused another (link.lua).
local MOST_NAMES = 1000

local function without_the_oldest_refresh_token(id, names)
  for i, name in ipairs(names) do
    if string.sub(name[1], 1, 2) == 'f:' then
      unname(id, name[1])
      table.remove(names, i)
      return true
    end
  end
end

-- live → live: a session is given newer tokens. What they replace stays known until it has expired: a backend may go on
-- taking it. `refresh_expires_at` 0: nobody tells, so as long as the session. Answers nothing; the record is saved.
local function join(id, record, last_activity, with)
  local names, kept = redis.call('HGET', sessions, 't:' .. id), {}
  local reference, refresh = with.reference, with.refresh or ''
  local new = {['r:' .. reference] = true, ['f:' .. (refresh == '' and record[REFRESH] or refresh)] = true}
  for _, name in ipairs(names and cmsgpack.unpack(names) or {}) do
    if name[2] > now then
      if not new[name[1]] then kept[#kept + 1] = name end
    else
      unname(id, name[1])
    end
  end
  if record[REFERENCE] ~= reference then
    kept[#kept + 1] = {'r:' .. record[REFERENCE], record[TOKEN_EXPIRES_AT]}
    redis.call('HSET', sessions, 'r:' .. reference, id)
  end
  if refresh ~= '' and record[REFRESH] ~= refresh then
    if record[REFRESH] ~= '' then kept[#kept + 1] = {'f:' .. record[REFRESH], record[REFRESH_EXPIRES_AT]} end
    redis.call('HSETNX', sessions, 'f:' .. refresh, id)
  end
  while #kept > MOST_NAMES and without_the_oldest_refresh_token(id, kept) do end
  if #kept > 0 then
    redis.call('HSET', sessions, 't:' .. id, cmsgpack.pack(kept))
  elseif names then
    redis.call('HDEL', sessions, 't:' .. id)
  end
  record[REFERENCE], record[JTI] = reference, with.jti
  record[TOKEN_EXPIRES_AT] = math.max(record[TOKEN_EXPIRES_AT], with.token_expires_at)
  if refresh ~= '' then
    local refresh_expires_at = with.refresh_expires_at > 0 and with.refresh_expires_at or record[EXPIRES_AT]
    record[REFRESH], record[REFRESH_EXPIRES_AT] = refresh, math.max(record[REFRESH_EXPIRES_AT], refresh_expires_at)
  end
  save(id, record)
  keep_until(math.max(record[TOKEN_EXPIRES_AT], record[REFRESH_EXPIRES_AT]))
  redis.call('ZADD', index, text(math.max(now, last_activity + 1)), id)
end
