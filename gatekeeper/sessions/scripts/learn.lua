-- learn: a session was given a text that may be a refresh token, at no place that says so (rule 5.13). The text names that
-- session until a second one is given it, of whichever user: from then on it names none.
-- KEYS[1]: string, '<id> <user>' of the session, or '*'
-- ARGV: '<id> <user>', how long to keep it in milliseconds, '1' where the text was only presented: then one that was
--       given to a session stays as it is
-- Replies {KEYS[1]}.

local owner = redis.call('GET', KEYS[1])
if owner and ARGV[3] == '1' then return {KEYS[1]} end
local milliseconds = math.max(tonumber(ARGV[2]), redis.call('PTTL', KEYS[1]))
local named = (not owner or owner == ARGV[1]) and ARGV[1] or '*'
redis.call('SET', KEYS[1], named, 'PX', string.format('%.0f', milliseconds))
return {KEYS[1]}
