-- repeat_end: ends a session that was ended before, on a server that may not know of it (recent_revocations.py): writes
-- what replication would have brought. A session that began after that instant is not concerned, except for one that the
-- same tokens opened because this server did not know that they were revoked; never one that began with a login, of which
-- only the older tokens of its reference are taken away (EARLIER).
-- call: id, record (packed, as it was stored when the session had ended), actor
-- Replies {KEYS[1], 1 | 0}: 1 where the server did not know.

local ended = cmsgpack.unpack(call.record)
if ended[JTI] == true then ended[JTI] = ended[REFERENCE] end
local at, reason, hidden = ended[ENDED_AT], ended[END_REASON], ended[HIDDEN]

-- The record is written anew, so a garbled one is as good as none.
local function known(id)
  local intact, record = pcall(load, id)
  return intact and record or nil
end

start_anew_if_lost()
local record = known(call.id)
if record and record[ENDED_AT] > 0 then
  if hidden > record[HIDDEN] then
    record[HIDDEN] = hidden
    save(call.id, record)
  end
  return {sessions, 0}
end

local owner = redis.call('HGET', sessions, 'r:' .. ended[REFERENCE])
if not record and owner and owner ~= call.id then
  local other = known(owner)
  if not other or other[ENDED_AT] > 0 then return {sessions, 0} end
  if other[LOGIN_METHOD] == 'password' and other[CREATED_AT] > at then
    local earlier = other[EARLIER]
    if earlier and (earlier[2] >= at or earlier[1] ~= ended[REFERENCE]) then return {sessions, 0} end
    other[EARLIER] = {ended[REFERENCE], at, call.id, reason, ended[TOKEN_EXPIRES_AT]}
    save(owner, other)
    keep_until(ended[TOKEN_EXPIRES_AT])
    return {sessions, 1}
  end
  if other[LOGIN_METHOD] ~= 'token' then return {sessions, 0} end
  finish(owner, other, score_of(owner) or other[CREATED_AT], now, reason, hidden)
  return {sessions, 1}
end

-- The names that the session has here stay, beside those of the record that is written.
if record then
  local older = redis.call('HGET', sessions, 't:' .. call.id)
  local names = older and cmsgpack.unpack(older) or {}
  local before_it = #names
  if record[REFERENCE] ~= ended[REFERENCE] then
    names[#names + 1] = {'r:' .. record[REFERENCE], record[TOKEN_EXPIRES_AT]}
  end
  if record[REFRESH] ~= '' and record[REFRESH] ~= ended[REFRESH] then
    names[#names + 1] = {'f:' .. record[REFRESH], record[REFRESH_EXPIRES_AT]}
  end
  if #names > before_it then redis.call('HSET', sessions, 't:' .. call.id, cmsgpack.pack(names)) end
  ended[TOKEN_EXPIRES_AT] = math.max(ended[TOKEN_EXPIRES_AT], record[TOKEN_EXPIRES_AT])
  ended[REFRESH_EXPIRES_AT] = math.max(ended[REFRESH_EXPIRES_AT], record[REFRESH_EXPIRES_AT])
end
redis.call('HSETNX', sessions, 'r:' .. ended[REFERENCE], call.id)
if ended[REFRESH] ~= '' then redis.call('HSETNX', sessions, 'f:' .. ended[REFRESH], call.id) end
-- The entry for the audit log is that of the first time to the byte, and so has its id.
now = at
finish(call.id, ended, ended[LAST_ACTIVITY], at, reason, hidden)
return {sessions, 1}
