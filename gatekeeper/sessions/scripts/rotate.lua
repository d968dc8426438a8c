-- rotate: a refresh token that Gatekeeper issued is presented, and makes way for a new pair of tokens.
--   KEYS[5] pairs  hash  <id> → {digest of the token last rotated, sealed pair that it got, until when}, packed: lets
--                        two tabs, or a client whose answer was lost, ask again within the window
-- ARGV: idle, ended_ttl, digest of the presented token
--       and to rotate it: digest of the new one, its access token's jti, when that expires, the sealed pair, the window
--       last, who acts
-- Answers {KEYS[1], 'current', id, reference, expires_at, claims}   asked only: it would be rotated
--         {KEYS[1], 'rotated', id}
--         {KEYS[1], 'again', id, sealed pair}                       rotated already, within the window, successor unused
--         {KEYS[1], 'reused', id}                                   rotated already, otherwise: the session ends
--         {KEYS[1], 'ended', id, end reason}                        its session is over
--         {KEYS[1], 'unknown'}

local pairs_kept = KEYS[5]
local idle, ended_ttl, presented = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
acting = ARGV[#ARGV]
-- Who only asks names no successor: only who acts follows.
local successor, jti, token_expires_at, sealed, window = #ARGV > 4 and ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'f:' .. presented)
local word, record, last_activity = state(id, idle, ended_ttl)
if not word then return {sessions, 'unknown'} end
if word == 'ended' then return {sessions, 'ended', id, record[END_REASON]} end

if presented ~= record[REFRESH] then
  local packed = redis.call('HGET', pairs_kept, id)
  local pair = packed and cmsgpack.unpack(packed)
  if pair and pair[1] == presented and pair[3] > now then return {sessions, 'again', id, pair[2]} end
  finish(id, record, last_activity, now, 'refresh_reused', 0, ended_ttl)
  redis.call('HDEL', pairs_kept, id)
  return {sessions, 'reused', id}
end

if not successor then
  local claims = redis.call('HGET', sessions, 'c:' .. id) or ''
  return {sessions, 'current', id, record[REFERENCE], text(record[EXPIRES_AT]), claims}
end
join(id, record, last_activity, {reference = record[REFERENCE], jti = jti, token_expires_at = token_expires_at,
                                 refresh = successor, refresh_expires_at = 0})
tell_refreshed(id, now)
-- One entry a session, gone with the window: the key lives as long as the longest of them.
redis.call('HDEL', pairs_kept, id)
if window > 0 then
  redis.call('HSET', pairs_kept, id, cmsgpack.pack({presented, sealed, now + window}))
  redis.call('PEXPIRE', pairs_kept, text(math.ceil(window / 1000)))
end
return {sessions, 'rotated', id}
