-- lookup: the session that tokens name, without a touch. It runs before a refresh, and for an introspection.
-- call: refresh (the digest of a refresh token, or ''), reference (of an access token, or ''), token_expires_at, issued_at
--       and digest (of that access token), session (nil, or the id of the session that was given a learnt text: learn.lua)
-- Replies {KEYS[1], 'live', id, '', expires_at, 1|0}     where both tokens name one, that of the refresh token
--         {KEYS[1], 'ended', id, end reason, ended_at, 0}   one of them names an ended session ('0': at any time)
--         {KEYS[1], 'crowded', id, '', expires_at, 1|0}  live, with so many unexpired access tokens that it gets no more
--         {KEYS[1], 'unknown', '0', '', not_before, 0}   neither token is known
--         {KEYS[1], 'doubtful'}                          one of them names a session that would have ended (due())
-- The last value is 1 where the refresh token is the newest of its session.

local refresh, reference = call.refresh, call.reference

start_anew_if_lost()
local found
for _, field in ipairs({call.session or refresh ~= '' and 'f:' .. refresh, reference ~= '' and 'r:' .. reference}) do
  local id, gone
  if field == 'r:' .. reference then
    id, _, gone = session_of(reference, call.issued_at, call.digest, call.token_expires_at)
  elseif field then
    id = field == call.session and field or redis.call('HGET', sessions, field)
  end
  if gone then return {sessions, 'ended', id, gone, '0', 0} end
  local status, record = state(id)
  if status == 'ended' then
    if string.sub(field, 1, 2) == 'r:' then keep_ended(id, record, call.token_expires_at) end
    return {sessions, 'ended', id, record[END_REASON], text(record[ENDED_AT]), 0}
  end
  if status == 'doubtful' then return {sessions, 'doubtful'} end
  if not id and field == 'r:' .. reference then
    local out, reason = signed_out_at_the_provider(reference, call.issued_at)
    if out then return {sessions, 'ended', out, reason, '0', 0} end
  end
  if status and not found then
    found = {sessions, 'live', id, '', text(record[EXPIRES_AT]), record[REFRESH] == refresh and 1 or 0}
  end
end
if not found then return {sessions, 'unknown', '0', '', text(tokens_before), 0} end
if has_every_token_it_may(found[3]) then return {sessions, 'crowded', found[3], '', found[5], found[6]} end
return found
