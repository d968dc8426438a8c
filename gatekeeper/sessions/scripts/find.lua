-- find: the session, live or ended, that a name stands for: the reference of its tokens, or the `jti` of the newest one. A
-- `jti` is looked for among the STEP sessions last active.
-- call: name, or id (an id, instead of a name), touch (true: moves the last activity of a live session, as a request does)
-- Replies {KEYS[1], id, last activity, record, particulars}, or {KEYS[1]} where there is none.

local function named()
  if call.id then return call.id end
  local id = redis.call('HGET', sessions, 'r:' .. call.name)
  if id then return id end
  local entries = scores('-inf', '+inf', STEP, true)
  for i = 1, #entries, 2 do
    local each = entries[i]
    local record = entry(each)
    if record and record[JTI] == call.name then return each end
  end
end

start_anew_if_lost()
local id = named()
local status, record, last_activity = state(id)
if not status then return {sessions} end
if status == 'ended' then
  last_activity = record[LAST_ACTIVITY]
elseif call.touch and status == 'live' then
  last_activity = math.max(present(last_activity), last_activity + 1)
  set_score(id, last_activity)
end
return {sessions, id, text(last_activity), cmsgpack.pack(record), particulars(id)}
