-- enforce_limit: after the limit was lowered, ends surplus sessions as the next opening would. An exempt newest session
-- stands for a user without a limit.
-- call: actor
-- Replies {KEYS[1], how many were evicted}

start_anew_if_lost()
local newest = live(false)[1]
if not newest or newest[2][EXEMPT] == 1 then return {sessions, 0} end
-- make_room() leaves one place free below the limit it is given.
return {sessions, make_room(rules.limit + 1) or 0}
