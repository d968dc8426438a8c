-- login: somebody has just signed in, and these are the tokens that they are about to be given. Opens a session for
-- them, whatever `not_before` says of older tokens.
-- ARGV[21]: the reference of a token that the login itself presented, or ''; its session ends: one device, one session
-- ARGV[22]: the claims of the session's tokens as JSON, or ''
-- Answers as arguments.lua says: 'opened', 'touched' (the backend answered a token that has a live session), 'ended' (or
-- one whose session is over), 'unknown' (or one whose record is damaged), 'full'

local presented, claims = ARGV[21], ARGV[22]

-- One device, one session: that of the token which the login brought makes way for `id`.
local function leave(reference, id)
  local leaving = reference ~= '' and redis.call('HGET', sessions, 'r:' .. reference)
  if not leaving or leaving == id then return end
  local word, record, last_activity = state(leaving, rules.idle, rules.ended_ttl)
  if word == 'live' then finish(leaving, record, last_activity, now, 'logged_out', 0, rules.ended_ttl) end
end

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'r:' .. with.reference)
if id then
  local word, record, last_activity = state(id, rules.idle, rules.ended_ttl)
  if word == 'live' then
    record[LOGIN_METHOD] = with.login_method
    join(id, record, last_activity, with)
    if with.refresh ~= '' then redis.call('HSET', sessions, 'f:' .. with.refresh, id) end
    leave(presented, id)
    return answer('touched', id, '', 0, record[EXPIRES_AT])
  end
  if not string.match(with.reference, '^h:') then
    return word and answer('ended', id, record[END_REASON]) or answer('unknown')
  end
end
local leaving = presented ~= '' and redis.call('HGET', sessions, 'r:' .. presented)
local word = state(leaving, rules.idle, rules.ended_ttl)
local opened = open_and_answer(word == 'live' and leaving or nil)
if opened[2] == 'opened' then
  if claims ~= '' then redis.call('HSET', sessions, 'c:' .. opened[3], claims) end
  leave(presented, opened[3])
end
return opened
