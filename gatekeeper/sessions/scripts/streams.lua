-- streams: what became of sessions that have open streams. To be asked about moves nothing; bytes on a stream do.
-- ARGV: idle, ended_ttl, then for each session its id and how many microseconds ago bytes last moved (-1: none did)
-- Answers {KEYS[1], {id, '', microseconds until it is over if nothing more happens}, …}
--         with the end reason in the second place, and 0, for one that is over

local idle, ended_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])

-- As a request at that moment would have: not where the session was over by then.
local function move(id, at)
  local record = load(id)
  local last_activity = record and record[ENDED_AT] == 0 and tonumber(redis.call('ZSCORE', index, id) or '0') or 0
  if last_activity <= 0 or at <= last_activity then return end
  local over_at, reason = due(id, record, last_activity, idle)
  if not over_at or (reason == 'idle' and at < over_at) then redis.call('ZADD', index, text(at), id) end
end

start_anew_if_lost()
local answer = {sessions}
for i = 3, #ARGV, 2 do
  local id, ago = ARGV[i], tonumber(ARGV[i + 1])
  if ago >= 0 then move(id, now - ago) end
  local word, record, last_activity = state(id, idle, ended_ttl)
  if word == 'live' then
    local over_at = record[EXPIRES_AT]
    if idle > 0 and record[EXEMPT] == 0 then over_at = math.min(over_at, last_activity + idle) end
    answer[#answer + 1] = {id, '', text(over_at - now)}
  else
    -- What the store has lost is over as everything of its user is.
    answer[#answer + 1] = {id, word and record[END_REASON] or 'revoked_by_admin', '0'}
  end
end
return answer
