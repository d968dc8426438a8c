-- Opens sessions and adds names to them: follows upkeep.lua in the scripts that do so.
--
-- An opening is a table with the fields of a new record: id, reference, jti, issued_at, token_expires_at, exempt (1 | 0),
-- login_method, ip_address, user_agent, hints, city, country; particulars (particulars() in upkeep.lua, or ''); refresh (the digest of its refresh token, or '') and
-- refresh_expires_at (0: unknown). Further: digest (the SHA-256 of the token's payload) and auth_time (nil: it has none).
-- Python packs it in Openings.fields (opening.py).

local function record_session_opened(id, at, login_method)
  append_to_outbox({'session_opened', id, at, login_method, actor})
end

local function record_refreshed(id, now)
  append_to_outbox({'refreshed', id, now, '', actor})
end

local function record_limit_refused(now)
  append_to_outbox({'limit_refused', '0', now, '', actor})
end

-- The order in which sessions are evicted, as a comparison of rows of live(); and a test for a session whose known tokens
-- have all expired, so that no request can use it any more. Those go first, by every policy.
local function eviction_order()
  local function unusable(record)
    return not apart and record[TOKEN_EXPIRES_AT] <= now and record[REFRESH_EXPIRES_AT] <= now
  end
  return function(a, b)
    local unusable_a, unusable_b = unusable(a[2]), unusable(b[2])
    if unusable_a ~= unusable_b then return unusable_a end
    if rules.policy == 'evict_idle' and a[3] ~= b[3] then return a[3] < b[3] end
    if a[2][CREATED_AT] ~= b[2][CREATED_AT] then return a[2][CREATED_AT] < b[2][CREATED_AT] end
    return tonumber(a[1]) < tonumber(b[1])
  end, unusable
end

-- Makes room for one more session within `limit`, not counting the session `leaving`. Returns how many were evicted, or
-- nil where the policy is to reject. Of more than STEP sessions only those with the oldest activity are looked at: there
-- can be so many after the limit was lowered, and the next openings evict the rest.
local function make_room(limit, leaving)
  if limit == 0 then return 0 end
  if count_scores('(0', '+inf') < limit then return 0 end
  local others, last = live(true)
  for i = #others, 1, -1 do
    if others[i][1] == leaving then table.remove(others, i) end
  end
  local surplus = #others + 1 - limit
  if last then surplus = surplus + count_scores('(' .. text(last), '+inf') end
  if surplus <= 0 then return 0 end
  local goes_before, unusable = eviction_order()
  table.sort(others, goes_before)
  if rules.policy == 'reject' and (surplus > #others or not unusable(others[surplus][2])) then return nil end
  surplus = math.min(surplus, #others)
  for i = 1, surplus do
    finish(others[i][1], others[i][2], others[i][3], now, 'evicted', 0)
  end
  return surplus
end

-- (nothing) → live. `leaving` is the id of a session that makes way for the new one. Returns the new id and how many
-- sessions were evicted, or nil where there is no room.
local function open(opening, leaving)
  forget()
  local evicted = make_room(opening.exempt == 1 and 0 or rules.limit, leaving)
  if not evicted then
    record_limit_refused(now)
    return nil
  end
  -- Inactive for longer than a session may live: over, even if no limit and no list ever looks at them.
  sweep(20, math.max(before, now - rules.ttl))
  local id = unused_id(opening.id)
  opening.created_at = math.max(now, before + 1)
  opening.expires_at = now + rules.ttl
  if opening.refresh == '' then
    opening.refresh_expires_at = 0
  elseif opening.refresh_expires_at == 0 then
    opening.refresh_expires_at = opening.expires_at
  end
  save(id, new_record(opening))
  redis.call('HSET', sessions, 'r:' .. opening.reference, id)
  if opening.refresh ~= '' then redis.call('HSET', sessions, 'f:' .. opening.refresh, id) end
  if opening.particulars ~= '' then redis.call('HSET', sessions, 'm:' .. id, opening.particulars) end
  set_score(id, opening.created_at)
  if before > 0 then write_not_before() end
  keep_until(math.max(opening.expires_at + rules.ended_ttl, opening.token_expires_at, opening.refresh_expires_at,
                      opening.earlier and opening.earlier[5] or 0))
  record_session_opened(id, opening.created_at, opening.login_method)
  return id, evicted
end

-- live → live: what a response hands out besides the newest access token. Further access tokens (`call.more`, each
-- with reference, issued_at, digest and token_expires_at) name the session too, unless they name one already. A learnt text (learn.lua) may be a refresh token:
-- it expires at `call.learnt_expires_at` (0: unknown, then with the session).
local function add_besides(id, call)
  if not (call.more or call.learnt_expires_at) then return end
  local record, names = load(id), redis.call('HGET', sessions, 't:' .. id)
  names = names and cmsgpack.unpack(names) or {}
  for _, token in ipairs(call.more or {}) do
    local name, expires_at = 'r:' .. token.reference, token.token_expires_at
    if redis.call('HSETNX', sessions, name, id) == 1 then names[#names + 1] = {name, expires_at} end
    record[TOKEN_EXPIRES_AT] = math.max(record[TOKEN_EXPIRES_AT], expires_at)
  end
  if call.more and #names > 0 then redis.call('HSET', sessions, 't:' .. id, cmsgpack.pack(names)) end
  if call.learnt_expires_at then
    local at = call.learnt_expires_at > 0 and call.learnt_expires_at or record[EXPIRES_AT]
    record[REFRESH_EXPIRES_AT] = math.max(record[REFRESH_EXPIRES_AT], at)
  end
  save(id, record)
  keep_until(math.max(record[TOKEN_EXPIRES_AT], record[REFRESH_EXPIRES_AT]))
end

-- A session keeps at most this many other names; the oldest refresh tokens and payloads are forgotten first. References
-- never are, because an unknown one opens a session: a session with so many unexpired ones gets no more (lookup.lua).
local MOST_NAMES = 1000

local function forget_oldest_token(id, names)
  for i, name in ipairs(names) do
    if string.sub(name[1], 1, 2) ~= 'r:' then
      unname(id, name[1])
      table.remove(names, i)
      return true
    end
  end
end

-- live → live: gives newer tokens to a session, and saves its record. The replaced ones stay known until they expire: a
-- backend may go on accepting them. `tokens`: reference, jti, token_expires_at, refresh (a digest, or ''), and
-- refresh_expires_at (0: unknown, then as long as the session).
local function join(id, record, last_activity, tokens)
  local names, kept = redis.call('HGET', sessions, 't:' .. id), {}
  local reference, refresh = tokens.reference, tokens.refresh
  local new = {['r:' .. reference] = true, ['f:' .. (refresh == '' and record[REFRESH] or refresh)] = true}
  for _, name in ipairs(names and cmsgpack.unpack(names) or {}) do
    if apart or name[2] > now then
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
  while #kept > MOST_NAMES and forget_oldest_token(id, kept) do end
  if #kept > 0 then
    redis.call('HSET', sessions, 't:' .. id, cmsgpack.pack(kept))
  elseif names then
    redis.call('HDEL', sessions, 't:' .. id)
  end
  record[REFERENCE], record[JTI] = reference, tokens.jti
  record[TOKEN_EXPIRES_AT] = math.max(record[TOKEN_EXPIRES_AT], tokens.token_expires_at)
  if refresh ~= '' then
    local refresh_expires_at = tokens.refresh_expires_at > 0 and tokens.refresh_expires_at or record[EXPIRES_AT]
    record[REFRESH], record[REFRESH_EXPIRES_AT] = refresh, math.max(record[REFRESH_EXPIRES_AT], refresh_expires_at)
  end
  save(id, record)
  keep_until(math.max(record[TOKEN_EXPIRES_AT], record[REFRESH_EXPIRES_AT]))
  set_score(id, math.max(present(last_activity), last_activity + 1))
end

-- Remembers by its payload that a token of the session's reference is one that a login of it handed out (EARLIER).
local function remember_payload(id, opening)
  local field = 'p:' .. opening.digest
  local packed, kept = redis.call('HGET', sessions, 't:' .. id), {}
  for _, name in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if name[1] ~= field then kept[#kept + 1] = name end
  end
  kept[#kept + 1] = {field, opening.token_expires_at}
  while #kept > MOST_NAMES and forget_oldest_token(id, kept) do end
  redis.call('HSET', sessions, field, id, 't:' .. id, cmsgpack.pack(kept))
end
