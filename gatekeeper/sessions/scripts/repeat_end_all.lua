-- repeat_end_all: ends every session of a user that began until an instant at which they were ended before, on a server
-- that may not know of it (recent_revocations.py). Sessions that began later are not concerned.
-- call: at (the instant), reason, spare (an id, or '0'), actor
-- Replies {KEYS[1], 1 | 0}: 1 where the server did not know.

local function state_at(id)
  local record = id ~= '0' and load(id)
  if not record or record[ENDED_AT] > 0 or record[CREATED_AT] > call.at then return nil end
  local last_activity = score_of(id) or 0
  if last_activity <= 0 or due(id, record, last_activity) then return nil end
  return record, last_activity
end

start_anew_if_lost()
if before >= call.at then
  -- Known; or all were ended again since, and the one that was spared then is over nevertheless.
  local record, last_activity = state_at(spared)
  if before == call.at or spared == call.spare or not record then return {sessions, 0} end
  finish(spared, record, last_activity, call.at, call.reason, call.reason == 'logged_out' and 0 or 1)
  return {sessions, 1}
end

before, spared, before_reason = call.at, state_at(call.spare) and call.spare or '0', call.reason
tokens_before = math.max(tokens_before, before)
write_not_before()
announce('*' .. spared, before_reason)
return {sessions, 1}
