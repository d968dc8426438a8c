-- clean_up: ends sessions that are idle or expired, and deletes records that may be deleted. Looks at STEP entries of the
-- index; an entry that moves between two calls may be missed, and is found by the next round.
-- call: seen (how many entries the calls before have looked at), hide (true: hides the idle and the expired from every list)
-- Replies {KEYS[1], how many were hidden, when the next live session is over (0: there is none), how many entries have
-- been looked at by now (0: all), until when an entry stays that could be hidden (0: there is none)}, or
-- {KEYS[1], 'doubtful'} without having changed anything, while the clocks disagree

if apart then return {sessions, 'doubtful'} end
start_anew_if_lost()
if call.seen == 0 then forget() end
local cleaned, next_due, listed_until = 0, 0, 0
-- By rank: an entry that ends here moves to the front, and those behind it keep their places.
local entries = scores('-inf', '+inf', STEP, false, call.seen)
for i = 1, #entries, 2 do
  local id, last_activity = entries[i], tonumber(entries[i + 1])
  local record = entry(id)
  if record then
    if record[ENDED_AT] == 0 and last_activity > 0 then
      local at, reason = due(id, record, last_activity)
      if at then
        settle(id, record, last_activity, at, reason)
      else
        at = over_at(record, last_activity)
        if next_due == 0 or at < next_due then next_due = at end
      end
    end
    if record[HIDDEN] == 0 and (record[END_REASON] == 'idle' or record[END_REASON] == 'expired') then
      if call.hide then
        record[HIDDEN] = 1
        save(id, record)
        cleaned = cleaned + 1
      else
        listed_until = math.max(listed_until, -(score_of(id) or 0))
      end
    end
  end
end
return {sessions, cleaned, text(next_due), #entries == 2 * STEP and text(call.seen + STEP) or '0', text(listed_until)}
