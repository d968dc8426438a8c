-- end: one session, by its id.
-- ARGV: id, end reason, idle, ended_ttl, who acts
--   'deactivated', 'logged_out'  ends a live session and leaves it in the lists of inactive ones
--   any other                    ends a live session and takes it, or one that was deactivated, out of every list
-- Answers {KEYS[1], last activity, record}, or {KEYS[1]} where there is no such session (any more).

local id, reason, idle, ended_ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
acting = ARGV[5]

local stays_listed = reason == 'deactivated' or reason == 'logged_out'

start_anew_if_lost()
local record = load(id)
if not record then return {sessions} end

local function ended()
  return {sessions, text(record[LAST_ACTIVITY]), cmsgpack.pack(record)}
end

if record[ENDED_AT] == 0 then
  local last_activity = tonumber(redis.call('ZSCORE', index, id) or record[CREATED_AT])
  local at, due_reason = due(id, record, last_activity, idle)
  if at then
    settle(id, record, last_activity, at, due_reason, ended_ttl)
    return {sessions}
  end
  finish(id, record, last_activity, now, reason, stays_listed and 0 or 1, ended_ttl)
  return ended()
end

if not stays_listed and record[END_REASON] == 'deactivated' and record[HIDDEN] == 0 then
  record[HIDDEN] = 1
  save(id, record)
  return ended()
end
return {sessions}
