-- trim_audit: removes the events of KEYS[1], a stream, that are older than ARGV[1] milliseconds by the store's clock.
-- Replies {KEYS[1], how many}.

local clock = redis.call('TIME')
local oldest = clock[1] * 1000 + math.floor(clock[2] / 1000) - tonumber(ARGV[1])
if oldest <= 0 then return {KEYS[1], 0} end
return {KEYS[1], redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', oldest))}
