-- clean_up: ends what is idle or expired, and forgets what may be forgotten. Looks at STEP entries of the index; one that
-- moves between two steps may be missed, and is there the next time.
-- ARGV: idle, ended_ttl, how many entries the steps before have looked at, hide (1: takes the idle and the expired out of
--       every list; else 0)
-- Answers {KEYS[1], how many were taken out, when the next live one is over (0: there is none), how many entries have
-- been looked at by now (0: all), until when one of them stays in the lists that could have been taken out (0: there is
-- none)}

local idle, ended_ttl, from, hide = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'

start_anew_if_lost()
if from == 0 then forget() end
local cleaned, again, listed_until = 0, 0, 0
-- By rank: one that ends here goes to the front, and those behind it keep their places.
local entries = redis.call('ZRANGE', index, text(from), text(from + STEP - 1), 'WITHSCORES')
for i = 1, #entries, 2 do
  local id, last_activity = entries[i], tonumber(entries[i + 1])
  local record = entry(id)
  if record then
    if record[ENDED_AT] == 0 and last_activity > 0 then
      local at, reason = due(id, record, last_activity, idle)
      if at then
        settle(id, record, last_activity, at, reason, ended_ttl)
      else
        at = record[EXPIRES_AT]
        if idle > 0 and record[EXEMPT] == 0 then at = math.min(at, last_activity + idle) end
        if again == 0 or at < again then again = at end
      end
    end
    if record[HIDDEN] == 0 and (record[END_REASON] == 'idle' or record[END_REASON] == 'expired') then
      if hide then
        record[HIDDEN] = 1
        save(id, record)
        cleaned = cleaned + 1
      else
        listed_until = math.max(listed_until, -tonumber(redis.call('ZSCORE', index, id) or '0'))
      end
    end
  end
end
return {sessions, cleaned, text(again), #entries == 2 * STEP and text(from + STEP) or '0', text(listed_until)}
