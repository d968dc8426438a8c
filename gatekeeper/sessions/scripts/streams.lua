-- streams: the state of sessions that have open streams. Asking moves nothing; bytes that moved on a stream do.
-- call: moved ({{id, how many microseconds ago bytes last moved, or -1}, …})
-- Replies {KEYS[1], {id, '', microseconds until it is over if nothing more happens}, …}; for an ended session the second
-- place is its end reason, and the third '0'

-- Moves the last activity, as a request at that instant would have, unless the session was over by then.
local function move(id, at)
  local record = load(id)
  local last_activity = record and record[ENDED_AT] == 0 and score_of(id) or 0
  if last_activity <= 0 or at <= last_activity then return end
  doubtful = false
  local due_at, reason = due(id, record, last_activity)
  if doubtful then return end
  if not due_at or (reason == 'idle' and at < due_at) then set_score(id, at) end
end

-- A session whose end due() held back is asked about again after this time.
local ASK_AGAIN = 10000000

start_anew_if_lost()
local reply = {sessions}
for _, each in ipairs(call.moved) do
  local id, ago = each[1], each[2]
  if ago >= 0 then move(id, now - ago) end
  local status, record, last_activity = state(id)
  if status == 'live' or status == 'doubtful' then
    local left = status == 'live' and over_at(record, last_activity) - now or ASK_AGAIN
    reply[#reply + 1] = {id, '', text(left)}
  else
    -- A session that the store has lost has ended as start_anew_if_lost() says.
    reply[#reply + 1] = {id, status and record[END_REASON] or 'revoked_by_admin', '0'}
  end
end
return reply
