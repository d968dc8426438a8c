-- find: the session that a name stands for, live or over: the reference of its tokens, or the `jti` of the newest of
-- them. A `jti` is looked for among the STEP sessions last active.
-- ARGV: idle, ended_ttl, name, touch (1: the activity of a live one moves, as by a request; else 0)
-- Answers {KEYS[1], id, last activity, record}, or {KEYS[1]} where there is none.

local idle, ended_ttl, name, touch = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'

local function named()
  local id = redis.call('HGET', sessions, 'r:' .. name)
  if id then return id end
  for _, each in ipairs(redis.call('ZREVRANGE', index, 0, STEP - 1)) do
    local record = entry(each)
    if record and record[JTI] == name then return each end
  end
end

start_anew_if_lost()
local id = named()
local word, record, last_activity = state(id, idle, ended_ttl)
if not word then return {sessions} end
if word == 'ended' then
  last_activity = record[LAST_ACTIVITY]
elseif touch then
  last_activity = math.max(now, last_activity + 1)
  redis.call('ZADD', index, text(last_activity), id)
end
return {sessions, id, text(last_activity), cmsgpack.pack(record)}
