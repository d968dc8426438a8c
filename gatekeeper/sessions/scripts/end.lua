-- end: ends one session, by its id.
-- call: id, reason, actor; only_live (true: an ended session is none); note (what 'reported' puts into the audit log)
--   'deactivated', 'logged_out', 'reported'  ends a live session, which stays in the lists of inactive ones
--   any other reason             ends a live session and hides it from every list, and hides a deactivated one
-- Replies {KEYS[1], last activity, record, particulars}, or {KEYS[1]} where there is no such session (any more).

local stays_listed = call.reason == 'deactivated' or call.reason == 'logged_out' or call.reason == 'reported'

start_anew_if_lost()
local record = load(call.id)
if not record then return {sessions} end

local function found()
  return {sessions, text(record[LAST_ACTIVITY]), cmsgpack.pack(record), particulars(call.id)}
end

if record[ENDED_AT] == 0 then
  local last_activity = score_of(call.id) or record[CREATED_AT]
  local at, due_reason = due(call.id, record, last_activity)
  if at then
    settle(call.id, record, last_activity, at, due_reason)
    return {sessions}
  end
  finish(call.id, record, last_activity, now, call.reason, stays_listed and 0 or 1)
  if call.reason == 'reported' then append_to_outbox({'session_reported', call.id, now, call.note, actor}) end
  return found()
end

if not call.only_live and not stays_listed and record[END_REASON] == 'deactivated' and record[HIDDEN] == 0 then
  record[HIDDEN] = 1
  save(call.id, record)
  return found()
end
return {sessions}
