-- enforce: ends what a lowered limit has left over, as the next opening would. Where the newest session is without limit,
-- so are all.
-- ARGV: idle, ended_ttl, limit, policy, who acts
-- Answers {KEYS[1], how many were evicted}

local idle, ended_ttl, limit, policy = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
acting = ARGV[5]

start_anew_if_lost()
local newest = live(idle, ended_ttl, false)[1]
if not newest or newest[2][EXEMPT] == 1 then return {sessions, 0} end
-- Room for one more than the limit is none for what is over it.
return {sessions, make_room(limit + 1, policy, idle, ended_ttl) or 0}
