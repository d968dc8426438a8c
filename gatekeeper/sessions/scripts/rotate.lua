-- rotate: a refresh token that Gatekeeper issued is presented, and is replaced by a new pair of tokens. While the successor
-- is unused, the token may come again: within the window for the same pair, later for a new one, which makes the unused
-- successor a used one (a client that lost the response and slept).
--   KEYS[5] pairs  hash  <id> → {digest of the token last rotated, sealed pair that replaced it, until when}, packed: lets
--                        a second tab, or a client that lost the response, ask again within the window
-- call: presented (a digest), successor, actor
--       successor (nil: only asks): refresh (the digest of the new token), jti and token_expires_at (of its access token),
--       sealed (the new pair), window
-- Replies {KEYS[1], 'current', id, reference, expires_at, claims}   asked only: it would be rotated
--         {KEYS[1], 'rotated', id}
--         {KEYS[1], 'repeated', id, sealed pair}   rotated already, within the window, and the successor is unused
--         {KEYS[1], 'reused', id, record}          its successor was used, or replaced too often: the session ends; its
--                                                  record is packed
--         {KEYS[1], 'ended', id, end reason}       its session has ended
--         {KEYS[1], 'unknown'}
--         {KEYS[1], 'doubtful'}                    its session would have ended (due())

local pairs_kept = KEYS[5]
local presented, successor = call.presented, call.successor
-- How often a token whose successor is unused gets a new one.
local MOST_REPLACEMENTS = 10

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'f:' .. presented)
local status, record, last_activity = state(id)
if not status then return {sessions, 'unknown'} end
if status == 'ended' then return {sessions, 'ended', id, record[END_REASON]} end
if status == 'doubtful' then return {sessions, 'doubtful'} end

local replacements = 0
if presented ~= record[REFRESH] then
  local packed = redis.call('HGET', pairs_kept, id)
  local pair = packed and cmsgpack.unpack(packed)
  if pair and pair[1] == presented and (apart or pair[3] > now) then return {sessions, 'repeated', id, pair[2]} end
  -- {the token of which the current one is the successor, how often that was replaced}
  local rotated = redis.call('HGET', sessions, 'u:' .. id)
  rotated = rotated and cmsgpack.unpack(rotated)
  if not (rotated and rotated[1] == presented and rotated[2] < MOST_REPLACEMENTS) then
    finish(id, record, last_activity, now, 'refresh_reused', 0)
    redis.call('HDEL', pairs_kept, id)
    return {sessions, 'reused', id, cmsgpack.pack(record)}
  end
  replacements = rotated[2] + 1
end

if not successor then
  local claims = redis.call('HGET', sessions, 'c:' .. id) or ''
  return {sessions, 'current', id, record[REFERENCE], text(record[EXPIRES_AT]), claims}
end
join(id, record, last_activity, {reference = record[REFERENCE], jti = successor.jti, refresh = successor.refresh,
                                 token_expires_at = successor.token_expires_at, refresh_expires_at = 0})
redis.call('HSET', sessions, 'u:' .. id, cmsgpack.pack({presented, replacements}))
record_refreshed(id, now)
-- One entry for each session; the key lives as long as the longest window, by whatever clock (SPARE_TIME).
redis.call('HDEL', pairs_kept, id)
if successor.window > 0 then
  redis.call('HSET', pairs_kept, id, cmsgpack.pack({presented, successor.sealed, now + successor.window}))
  redis.call('PEXPIRE', pairs_kept, text(math.ceil(successor.window / 1000) + SPARE_TIME))
end
return {sessions, 'rotated', id}
