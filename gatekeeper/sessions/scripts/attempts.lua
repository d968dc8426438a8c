-- attempts: failed logins, counted under KEYS[1]: a hash of `failed` and `until`. It expires a window after the first
-- failure; once there is a wait, a window after that.
-- ARGV: 'ask' | 'fail' | 'forget', how many may fail, the window in microseconds
--   'ask'     may another login be tried? From the limit on one at a time: it starts the next wait for all others
--   'fail'    a login has failed
--   'forget'  a login has succeeded
-- Replies {KEYS[1], microseconds to wait}; 0 for none.

local ask, limit, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local LONGEST = 900000000
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

if ask == 'forget' then
  redis.call('DEL', KEYS[1])
  return {KEYS[1], 0}
end
local failed = tonumber(redis.call('HGET', KEYS[1], 'failed') or '0')
if ask == 'fail' then failed = redis.call('HINCRBY', KEYS[1], 'failed', 1) end
-- 1 s at the limit, then twice as long each time.
local wait = failed < limit and 0 or math.min(LONGEST, 1000000 * 2 ^ math.min(failed - limit, 20))
-- Should the clock have been put back meanwhile, a wait is no longer for that: this count makes none longer than `wait`.
local until_when = math.min(tonumber(redis.call('HGET', KEYS[1], 'until') or '0'), now + wait)
if ask == 'ask' and until_when > now then return {KEYS[1], until_when - now} end
if wait > 0 then redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + wait)) end
-- The count outlives the wait, or a caller who waited would find it forgotten. Asking does not prolong it beyond that.
local stays = 0
if ask == 'fail' and (wait > 0 or failed == 1) then
  stays = window + wait
elseif wait > 0 and redis.call('PTTL', KEYS[1]) * 1000 < wait then
  stays = wait
end
if stays > 0 then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(stays / 1000))) end
return {KEYS[1], 0}
