-- refreshed: a backend has renewed tokens, and these are the new ones.
-- ARGV[21]: the session that the request's own tokens named (link.lua), or '0'
-- ARGV[22]: `adopt_not_before` (epoch.lua)
-- Answers as arguments.lua says: 'touched' (they belong to that session now, or have one of their own), 'opened'
-- (nothing was known), 'ended', 'unknown' (they may not open one), 'full'

local linked = ARGV[21]

start_anew_if_lost()
local word, record, last_activity = state(linked ~= '0' and linked, rules.idle, rules.ended_ttl)
if word == 'ended' then return answer('ended', linked, record[END_REASON]) end
if linked ~= '0' and not word then return answer('unknown') end
local id = redis.call('HGET', sessions, 'r:' .. with.reference)
if id and id ~= linked then
  linked = id
  word, record, last_activity = state(id, rules.idle, rules.ended_ttl)
  if word ~= 'live' then return word and answer('ended', id, record[END_REASON]) or answer('unknown') end
end
if word == 'live' then
  -- What came with one refresh may be told in two steps, of which the second brings no other access token.
  if record[REFERENCE] ~= with.reference or record[JTI] ~= with.jti or record[TOKEN_EXPIRES_AT] < with.token_expires_at then
    tell_refreshed(linked, now)
  end
  join(linked, record, last_activity, with)
  return answer('touched', linked, '', 0, record[EXPIRES_AT])
end
local not_earlier = math.max(before, tonumber(ARGV[22]))
if rules.unknown == 'reject' or (not_earlier > 0 and with.issued_at <= not_earlier) then return answer('unknown') end
local out, reason = signed_out_at_the_provider(with.reference, with.issued_at)
if out then return answer('ended', out, reason) end
return open_and_answer()
