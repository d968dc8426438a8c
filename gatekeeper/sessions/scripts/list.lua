-- list: the sessions of a user, newest activity first.
-- ARGV: idle, ended_ttl, include_inactive (0 | 1)
-- Answers {KEYS[1], {id, last activity, record}, …}

local idle, ended_ttl, include_inactive = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'

start_anew_if_lost()
forget()
local rows = live(idle, ended_ttl, false)
if include_inactive then
  sweep(idle, ended_ttl, STEP, before)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', '(0', 'LIMIT', 0, STEP)) do
    local record = entry(id)
    if record and record[HIDDEN] == 0 then rows[#rows + 1] = {id, record, record[LAST_ACTIVITY]} end
  end
  table.sort(rows, function(a, b)
    if a[3] ~= b[3] then return a[3] > b[3] end
    return tonumber(a[1]) > tonumber(b[1])
  end)
end

local answer = {sessions}
for i = 1, math.min(#rows, STEP) do
  answer[i + 1] = {rows[i][1], text(rows[i][3]), cmsgpack.pack(rows[i][2])}
end
return answer
