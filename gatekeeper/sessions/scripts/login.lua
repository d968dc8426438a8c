-- login: a user has signed in, and these are the tokens that the response hands out. Opens a session for them, whatever
-- `not_before` says of older tokens, and whatever became of an earlier session under their reference; the older tokens of
-- that reference go on naming the ended session (EARLIER in common.lua).
-- call: opening (opening.lua), presented (nil, or the access token that came with the login request: reference, issued_at
--       and digest; its session ends, so that a device has one session), claims (for tokens issued later, as JSON, or ''),
--       repeats (true: the response hands out a token that the request itself brought), more and learnt_expires_at
--       (add_besides() in opening.lua), actor
-- Replies as sign_in.lua says: 'opened'; 'touched' (the response repeats a token that has a live session, or is of that
-- session's reference); 'ended' (it may not open one any more); 'stale' (it must not, because the user signed in before
-- the end of a session that was ended out of distrust); 'unknown' (the record of its reference is damaged); 'full';
-- 'doubtful'. After 'opened' and 'touched' follow the id and the packed record of the session of `presented`, if it ended
-- here.

local presented, opening = call.presented, call.opening
-- The end reasons after which a provider that still remembers the user does not do: the user must sign in again.
local DISTRUST = {reported = true, revoked_by_admin = true, blocked = true, ended_before = true}

-- The live session of the presented token, or nil.
local function presented_session()
  if not presented then return nil end
  local id = session_of(presented.reference, presented.issued_at, presented.digest, 0)
  local status, record, last_activity = state(id)
  if status == 'live' or status == 'doubtful' then return id, record, last_activity end
end

-- Ends the session of the presented token, unless that is session `id` itself, and adds it to the reply `result`.
local function leave(id, result)
  local leaving, record, last_activity = presented_session()
  if not leaving or leaving == id then return result end
  finish(leaving, record, last_activity, now, 'logged_out', 0)
  result[#result + 1] = leaving
  result[#result + 1] = cmsgpack.pack(record)
  return result
end

-- The id and the end reason of the record by which end_sid.lua remembers that the provider ended this `sid`, if it ended
-- this sign-in: without `auth_time` every one; else the session under the reference (`record`, nil if there was none), or
-- one that began in an earlier second.
local function ended_by_the_provider(record)
  local sid = sid_of(opening.reference)
  local id = sid and redis.call('HGET', sessions, 'r:' .. sid .. ':')
  local mark = id and load(id)
  if not mark then return nil end
  local covered
  if record then
    covered = record[CREATED_AT] <= mark[ENDED_AT]
  else
    local auth_time = tonumber(string.match(opening.reference, ':(.*)$') or '0')
    covered = (math.floor(auth_time) + 1) * 1000000 <= mark[ENDED_AT]
  end
  if covered then return id, mark[END_REASON] end
end

-- Remembers those tokens of the login's own response of which `iat` does not tell that they are no older ones.
local function remember_payloads(id)
  local earlier = load(id)[EARLIER]
  if not earlier then return end
  for _, token in ipairs({opening, unpack(call.more or {})}) do
    if token.digest ~= '' and earlier[1] == token.reference and token.issued_at <= earlier[2] then
      remember_payload(id, token)
    end
  end
end

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'r:' .. opening.reference)
local status, record, last_activity = state(id)
if status == 'doubtful' then return reply('doubtful') end
if call.repeats then
  local named, _, reason = session_of(opening.reference, opening.issued_at, opening.digest, opening.token_expires_at)
  reason = reason or (status == 'ended' and record[END_REASON])
  if reason then return reply('ended', named, reason) end
end
if status == 'live' then
  record[LOGIN_METHOD] = opening.login_method
  join(id, record, last_activity, opening)
  if opening.refresh ~= '' then redis.call('HSET', sessions, 'f:' .. opening.refresh, id) end
  add_besides(id, call)
  remember_payloads(id)
  return leave(id, reply('touched', id, '', 0, record[EXPIRES_AT]))
end
if id and not status and not string.match(opening.reference, '^h:') then return reply('unknown') end
local out, out_reason = ended_by_the_provider(record)
if out then return reply('ended', out, out_reason) end
if status == 'ended' then
  if DISTRUST[record[END_REASON]] and opening.auth_time and opening.auth_time <= record[ENDED_AT] then
    return reply('stale', id, record[END_REASON])
  end
  -- The tokens of an `h:` reference are all alike: this one is of the new session, and so are they.
  if opening.reference ~= 'h:' .. opening.digest then
    opening.earlier = {opening.reference, record[ENDED_AT], id, record[END_REASON],
                       math.max(record[TOKEN_EXPIRES_AT], record[EARLIER] and record[EARLIER][5] or 0)}
  end
end
local leaving = presented_session()
local opened = open_and_reply(opening, leaving)
if opened[2] == 'opened' then
  if call.claims ~= '' then redis.call('HSET', sessions, 'c:' .. opened[3], call.claims) end
  add_besides(opened[3], call)
  remember_payloads(opened[3])
  return leave(opened[3], opened)
end
return opened
