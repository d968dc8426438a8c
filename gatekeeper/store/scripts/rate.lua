-- rate: one step of the generic cell rate algorithm (ITU-T I.371) for the caller of KEYS[1].
-- ARGV: microseconds between two calls; the length of a burst, in microseconds
-- No call is counted that would make `due` later than a burst from then: a later one is of a clock that was ahead.
-- Returns {KEYS[1], 0} for a call within the limit, else {KEYS[1], microseconds to wait}; such a call is not counted.

local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local due = math.min(math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0')), now + burst) + interval
local wait = due - now - burst
if wait > 0 then return {KEYS[1], math.ceil(wait)} end
redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1)
return {KEYS[1], 0}
