-- login: a user has signed in, and these are the tokens that the response hands out. Opens a session for them, whatever
-- `not_before` says of older tokens.
-- call: opening (opening.lua), presented (the reference of a token that came with the login request, or ''; its session
--       ends, so that a device has one session), claims (for tokens issued later, as JSON, or ''), more and
--       learnt_expires_at (add_besides() in opening.lua), actor
-- Replies as sign_in.lua says: 'opened'; 'touched' (the response repeats a token that has a live session); 'ended' (it
-- repeats one whose session has ended); 'unknown' (it repeats one whose record is damaged); 'full'; 'doubtful'. After
-- 'opened' and 'touched' follow the id and the packed record of the session of `presented`, if it ended here.

local presented, opening = call.presented, call.opening

-- Ends the session of the presented token, unless that is session `id` itself, and adds it to the reply `result`.
local function leave(reference, id, result)
  local leaving = reference ~= '' and redis.call('HGET', sessions, 'r:' .. reference)
  if not leaving or leaving == id then return result end
  local status, record, last_activity = state(leaving)
  if status == 'live' or status == 'doubtful' then
    finish(leaving, record, last_activity, now, 'logged_out', 0)
    result[#result + 1] = leaving
    result[#result + 1] = cmsgpack.pack(record)
  end
  return result
end

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'r:' .. opening.reference)
if id then
  local status, record, last_activity = state(id)
  if status == 'doubtful' then return reply('doubtful') end
  if status == 'live' then
    record[LOGIN_METHOD] = opening.login_method
    join(id, record, last_activity, opening)
    if opening.refresh ~= '' then redis.call('HSET', sessions, 'f:' .. opening.refresh, id) end
    add_besides(id, call)
    return leave(presented, id, reply('touched', id, '', 0, record[EXPIRES_AT]))
  end
  if not string.match(opening.reference, '^h:') then
    return status and reply('ended', id, record[END_REASON]) or reply('unknown')
  end
end
local leaving = presented ~= '' and redis.call('HGET', sessions, 'r:' .. presented)
local status = state(leaving)
local opened = open_and_reply(opening, (status == 'live' or status == 'doubtful') and leaving or nil)
if opened[2] == 'opened' then
  if call.claims ~= '' then redis.call('HSET', sessions, 'c:' .. opened[3], call.claims) end
  add_besides(opened[3], call)
  return leave(presented, opened[3], opened)
end
return opened
