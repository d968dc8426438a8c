-- end_sid: an identity provider says that one of its sign-ins is over. Ends every session whose tokens carry that `sid`,
-- and leaves a record by which tokens of it that were never seen are known as over (upkeep.lua). Looks at STEP sessions,
-- the least active first: one that moves meanwhile is met again.
-- ARGV: sid, until when such tokens may turn up, idle, ended_ttl, new id, from which activity on (0 at first), who acts
-- Answers {KEYS[1], how many live sessions ended, from which activity to go on (0: all have been looked at)}

local sid, until_when, idle, ended_ttl, new_id = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local from = tonumber(ARGV[6])
acting = ARGV[7]

local function carries_it(id, record)
  if sid_of(record[REFERENCE]) == sid then return true end
  local older = redis.call('HGET', sessions, 't:' .. id)
  for _, name in ipairs(older and cmsgpack.unpack(older) or {}) do
    if name[2] > now and string.sub(name[1], 1, 2) == 'r:' and sid_of(string.sub(name[1], 3)) == sid then return true end
  end
  return false
end

start_anew_if_lost()
if from == 0 then
  forget()
  -- It says when the last such word came.
  local mark = 'r:' .. sid .. ':'
  local id = redis.call('HGET', sessions, mark)
  if not id then
    id = new_id
    while redis.call('HEXISTS', sessions, id) == 1 do id = text(tonumber(id) % 9007199254740991 + 1) end
    redis.call('HSET', sessions, mark, id)
  end
  finish(id, {now, now, until_when, 0, 0, '', 0, 0, 0, sid .. ':', '', 'token', '', '', '', '', '', ''},
         now, now, 'logged_out', 1, ended_ttl)
end

local ended, last = 0, from
local entries = redis.call('ZRANGEBYSCORE', index, from == 0 and '(0' or text(from), '+inf', 'WITHSCORES', 'LIMIT', 0, STEP)
for i = 1, #entries, 2 do
  local id = entries[i]
  last = tonumber(entries[i + 1])
  local record = entry(id)
  if record and carries_it(id, record) then
    local at, reason = due(id, record, last, idle)
    settle(id, record, last, at or now, reason or 'logged_out', ended_ttl)
    if not at then ended = ended + 1 end
  end
end
return {sessions, ended, #entries == 2 * STEP and last > from and text(last) or '0'}
