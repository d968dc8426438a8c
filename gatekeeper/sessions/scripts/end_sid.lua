-- end_sid: an identity provider says that one of its sign-ins is over. Ends every session whose tokens carry that `sid`,
-- and leaves a record of the end by which tokens of it that were never seen are known as over.
-- ARGV: sid, until when such tokens may turn up, idle, ended_ttl, new id
-- Answers {KEYS[1], how many live sessions ended}

local sid, until_when, idle, ended_ttl, new_id = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

start_anew_if_lost()
local ended = 0
for _, row in ipairs(live(idle, ended_ttl, false)) do
  local reference = row[2][REFERENCE]
  if reference == sid or sid_of(reference) == sid then
    finish(row[1], row[2], row[3], now, 'logged_out', 0, ended_ttl)
    ended = ended + 1
  end
end
if not redis.call('HGET', sessions, 'r:' .. sid) then
  forget()
  while redis.call('HEXISTS', sessions, new_id) == 1 do new_id = text(tonumber(new_id) % 9007199254740991 + 1) end
  redis.call('HSET', sessions, 'r:' .. sid, new_id)
  finish(new_id, {now, now, until_when, 0, 0, '', 0, 0, 0, sid, '', 'token', '', '', '', '', '', ''},
         now, now, 'logged_out', 1, ended_ttl)
end
return {sessions, ended}
