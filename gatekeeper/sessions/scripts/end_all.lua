-- end_all: ends every session of a user, or every one but `spare`. One write of `not_before` does it, however many there
-- are; STEP records are changed now, the rest by later scripts.
-- call: reason, spare (an id, or '0'), actor
-- Replies {KEYS[1], how many live sessions ended, the instant until which sessions began that have ended, the spared id}

local spare = call.spare

start_anew_if_lost()
local found, oldest = live(false)
local ended = #found
if oldest then
  -- The rest is counted by last activity: without any for `idle`, a session has ended before, if the clocks agree.
  local floor = math.max(before, rules.idle > 0 and not apart and now - rules.idle or 0)
  ended = ended + count_scores('(' .. text(floor), '(' .. text(oldest))
end

local spare_record = spare ~= '0' and load(spare)
if not spare_record or spare_record[ENDED_AT] > 0 then
  spare = '0'
else
  local last_activity = score_of(spare)
  if not last_activity or due(spare, spare_record, last_activity) then spare = '0' else ended = ended - 1 end
end

-- A session may have been touched by a server whose clock ran ahead of this one (a failover): it ends all the same.
local newest = scores('-inf', '+inf', 1, true)
end_all_before(math.max(now, tonumber(newest[2] or '0')), spare, call.reason)
announce('*' .. spared, call.reason)
for _, row in ipairs(found) do
  if row[1] ~= spare then
    record_end(row[1], row[2], row[3], now, call.reason, call.reason == 'logged_out' and 0 or 1)
  end
end
return {sessions, ended, text(before), spared}
