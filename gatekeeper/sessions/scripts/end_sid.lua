-- end_sid: an identity provider reports that a sign-in is over. Ends every session whose tokens carry that `sid`, and
-- leaves a record by which tokens that were never seen are known as ended (signed_out_at_the_provider() in upkeep.lua).
-- Looks at STEP sessions, those with the oldest activity first: one that moves meanwhile is met by a later call.
-- call: sid, tokens_expire_at (of the last such token), id (for the new record), from_activity (0 at first), actor, at (0:
--       now; else an earlier instant, where the report is repeated: sessions that began after it are not concerned),
--       issued_at (of the report; 0: unknown). A session that a login opened under the reference of one that had ended by
--       then is not concerned
-- Replies {KEYS[1], how many live sessions ended, `from_activity` of the next call (0: all have been looked at), the instant}

local function carries_sid(id, record)
  if sid_of(record[REFERENCE]) == call.sid then return true end
  local older = redis.call('HGET', sessions, 't:' .. id)
  for _, name in ipairs(older and cmsgpack.unpack(older) or {}) do
    if name[2] > now and string.sub(name[1], 1, 2) == 'r:' and sid_of(string.sub(name[1], 3)) == call.sid then
      return true
    end
  end
  return false
end

-- Whether the report is about the session that had the reference of `record` before (EARLIER).
local function is_about_an_earlier(record)
  local earlier = record and record[EARLIER]
  return earlier and call.issued_at > 0 and call.issued_at <= earlier[2] and sid_of(earlier[1]) == call.sid
end

-- Whether a session that carries the `sid` is over. One that began after the instant is not, unless a token that the end
-- covers whenever it was issued has opened it, since this server did not know of the end (a repetition).
local function is_concerned(record)
  if is_about_an_earlier(record) then return false end
  if call.at == 0 or record[CREATED_AT] <= call.at then return true end
  local _, one_of_several = sid_of(record[REFERENCE])
  return record[LOGIN_METHOD] == 'token' and one_of_several == ''
end

local from = call.from_activity
local instant = call.at > 0 and call.at or now

start_anew_if_lost()
local newest = redis.call('HGET', sessions, 'r:' .. call.sid)
newest = newest and load(newest)
local is_late = is_about_an_earlier(newest)
if is_late then instant = math.min(instant, newest[EARLIER][2]) end
if from == 0 then
  forget()
  -- The record's `ended_at` says when the provider last said so.
  local reference = call.sid .. ':'
  local id = redis.call('HGET', sessions, 'r:' .. reference)
  if not id then
    id = unused_id(call.id)
    redis.call('HSET', sessions, 'r:' .. reference, id)
  end
  local known = load(id)
  if not known or known[ENDED_AT] < instant then
    local record = new_record({created_at = instant, expires_at = instant, token_expires_at = call.tokens_expire_at,
                               reference = reference, jti = '', login_method = 'token'})
    finish(id, record, instant, (call.at > 0 or is_late) and instant or token_now, 'logged_out', 1)
  end
end

local ended, last = 0, from
local entries = scores(from == 0 and '(0' or text(from), '+inf', STEP)
for i = 1, #entries, 2 do
  local id = entries[i]
  last = tonumber(entries[i + 1])
  local record = entry(id)
  if record and is_concerned(record) and carries_sid(id, record) then
    local at, reason = due(id, record, last)
    settle(id, record, last, at or instant, reason or 'logged_out')
    if not at then ended = ended + 1 end
  end
end
return {sessions, ended, #entries == 2 * STEP and last > from and text(last) or '0', text(instant)}
