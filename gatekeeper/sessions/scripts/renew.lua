-- renew: the response to a request of a session hands out another access token of its user, which belongs to the session.
-- call: id (of the session), reference, jti, issued_at, token_expires_at, digest (of the token), adopt_not_before
--       (epoch.lua)
-- Replies {KEYS[1], 'joined'}    it names the session now
--         {KEYS[1], 'known'}     it names a session already, or one that the identity provider ended
--         {KEYS[1], 'older'}     all of the user's sessions were ended after it was issued, or the store lost data
--         {KEYS[1], 'ended'}     the session has ended meanwhile; the token names it all the same, and so is refused
--         {KEYS[1], 'crowded'}   the session has as many unexpired tokens as it may: this one names it and is refused
--         {KEYS[1], 'unknown'}   there is no such session

-- More tokens than these are not told apart: while the session lives, no unknown token of the user opens another one.
local MOST_SURPLUS = 10000

local function name_surplus(id)
  local number = tonumber(redis.call('HGET', sessions, 'n:' .. id) or '0')
  if number < MOST_SURPLUS then
    redis.call('HSET', sessions, 'x:' .. call.reference, id, 'n:' .. id, number + 1)
  else
    redis.call('HSET', sessions, 'x:', id)
  end
end

-- Names an ended session, which is kept until the token has expired.
local function name_ended(id, record)
  local packed = redis.call('HGET', sessions, 't:' .. id)
  local names = packed and cmsgpack.unpack(packed) or {}
  names[#names + 1] = {'r:' .. call.reference, call.token_expires_at}
  redis.call('HSET', sessions, 'r:' .. call.reference, id, 't:' .. id, cmsgpack.pack(names))
  keep_ended(id, record, call.token_expires_at)
end

start_anew_if_lost()
if session_of(call.reference, call.issued_at, call.digest, call.token_expires_at)
  or signed_out_at_the_provider(call.reference, call.issued_at) then
  return {sessions, 'known'}
end
-- Only a login opens the way to such a token, as at an adoption: a response may repeat what was refused.
local not_earlier = math.max(tokens_before, call.adopt_not_before)
if not_earlier > 0 and call.issued_at <= not_earlier then return {sessions, 'older'} end
local status, record, last_activity = state(call.id)
if not status then return {sessions, 'unknown'} end
if status == 'ended' then
  name_ended(call.id, record)
  return {sessions, 'ended'}
end
if has_every_token_it_may(call.id) then
  name_surplus(call.id)
  keep_until(call.token_expires_at)
  return {sessions, 'crowded'}
end
join(call.id, record, last_activity, {reference = call.reference, jti = call.jti, refresh = '',
                                      token_expires_at = call.token_expires_at, refresh_expires_at = 0})
return {sessions, 'joined'}
