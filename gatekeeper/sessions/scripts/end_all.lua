-- end_all: every session of a user, or every other one. One write of `not_before` does it, however many there are; the
-- records follow, STEP of them now and the rest by later scripts.
-- ARGV: end reason, id to spare or 0, idle, ended_ttl, who acts
-- Answers {KEYS[1], how many live sessions ended}

local reason, spare, idle, ended_ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
acting = ARGV[5]

start_anew_if_lost()
local found, oldest = live(idle, ended_ttl, false)
local ended = #found
if oldest then
  -- Those that were not looked at, by their activity: a silence of `idle` is an end already.
  local floor = math.max(before, idle > 0 and now - idle or 0)
  ended = ended + redis.call('ZCOUNT', index, '(' .. text(floor), '(' .. text(oldest))
end

local spare_record = spare ~= '0' and load(spare)
if not spare_record or spare_record[ENDED_AT] > 0 then
  spare = '0'
else
  local last_activity = tonumber(redis.call('ZSCORE', index, spare) or '')
  if not last_activity or due(spare, spare_record, last_activity, idle) then spare = '0' else ended = ended - 1 end
end

-- A session that was touched with a clock ahead of this one (a failover) is older all the same.
local newest = redis.call('ZREVRANGE', index, 0, 0, 'WITHSCORES')
before, spared, before_reason = math.max(now, before, tonumber(newest[2] or '0')), spare, reason
redis.call('SET', not_before, text(before) .. ' ' .. spared .. ' ' .. before_reason)
announce('*' .. spared, reason)
for _, row in ipairs(found) do
  if row[1] ~= spare then record_end(row[1], row[2], row[3], now, reason, reason == 'logged_out' and 0 or 1, ended_ttl) end
end
return {sessions, ended}
