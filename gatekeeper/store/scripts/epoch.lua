-- epoch: one heartbeat of a running Gatekeeper, to find out whether the store still has its data. Used without
-- common.lua.
--   KEYS[1] epoch  hash  id                a random name for the present data
--                        beats             the number of heartbeats: an older copy of the data has fewer
--                        adopt_not_before  microseconds; a token issued until then opens no session
--                        after             the epoch that was lost last, '' if none was known
--                        loss              what was found then
--                        schema            the number of the format in which sessions are stored
--                        ahead             1 while the clock is so far ahead of the callers' that data has expired
-- ARGV: the epoch that the caller knows, '' at its start; the heartbeats that it knows; a random name for a new epoch;
-- the `adopt_not_before` that it knows; its schema; the clock of its host, in microseconds
-- Returns {KEYS[1], epoch, beats, adopt_not_before, 'same' | 'missing' | 'older' | 'another' | 'ahead', now}, or the error
-- SCHEMA without having written anything.
-- One Gatekeeper is the first to notice a loss; by `after` the others see that the loss has been noticed, and by `loss`
-- which one it was.

local known, known_beats, fresh = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local schema = ARGV[5]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
-- Keys stay a day longer than they are needed (SPARE_TIME in common.lua), so a clock that is ahead by less loses nothing.
local SPARE_TIME = 86400000000
local host = tonumber(ARGV[6])
-- Tokens are issued by the clocks of hosts: one that is far from this clock has the word, or tokens that are issued later
-- would open no sessions until this clock's instant.
local token_now = math.abs(now - host) > 60000000 and host or now

local stored = redis.call('HMGET', KEYS[1], 'id', 'beats', 'adopt_not_before', 'after', 'schema', 'loss', 'ahead')
if stored[5] and stored[5] ~= schema then
  local theirs = string.sub(string.gsub(stored[5], '%W', '?'), 1, 20)
  return redis.error_reply('SCHEMA it holds format ' .. theirs .. ', and this Gatekeeper has format ' .. schema ..
    ': run a release with format ' .. theirs .. ', or set another KEY_PREFIX')
end
local id, beats = stored[1], tonumber(stored[2] or '0')
local adopt_not_before, after = math.max(tonumber(stored[3] or '0'), tonumber(ARGV[4])), stored[4] or ''

local found = 'same'
if not id then
  found = 'missing'
elseif known ~= '' and id ~= known and after ~= known then
  found = 'another'
elseif id == known and beats < known_beats then
  found = 'older'
end
if found ~= 'same' then
  if known ~= '' then adopt_not_before = math.max(adopt_not_before, token_now) end
  -- Another epoch keeps its name, so that a Gatekeeper that knows it notices no loss.
  if found ~= 'another' then id, beats = fresh, math.max(beats, known_beats) end
  after = known
  redis.call('HSET', KEYS[1], 'loss', found)
elseif known ~= '' and id ~= known then
  found = stored[6] or 'another'
end
if now - host > SPARE_TIME then
  if not stored[7] then
    redis.call('HSET', KEYS[1], 'ahead', '1')
    if known ~= '' then found, adopt_not_before = 'ahead', math.max(adopt_not_before, token_now) end
  end
elseif stored[7] and token_now == now then
  redis.call('HDEL', KEYS[1], 'ahead')
end
redis.call('HSET', KEYS[1], 'id', id, 'after', after, 'beats', string.format('%.0f', beats + 1),
           'adopt_not_before', string.format('%.0f', adopt_not_before), 'schema', schema)
return {KEYS[1], id, string.format('%.0f', beats + 1), string.format('%.0f', adopt_not_before), found,
        string.format('%.0f', now)}
