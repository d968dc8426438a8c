-- rate: one step of the generic cell rate algorithm (ITU-T I.371), for KEYS[1].
-- ARGV: microseconds between two calls, microseconds' worth of calls that may come at once
-- Answers {KEYS[1], 0}, or how many microseconds to wait; a call that has to wait uses nothing up.

local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0')) + interval
local wait = due - now - burst
if wait > 0 then return {KEYS[1], math.ceil(wait)} end
redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1)
return {KEYS[1], 0}
