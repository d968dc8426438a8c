-- logout: ends the session that a token names. One that is over stays as it is, but for as long as this token lives. A
-- token that was never seen, or whose record is lost, gets an ended record, so that it cannot open a session afterwards.
-- ARGV: reference, jti, token_expires_at, idle, ended_ttl, new id, ip address, user agent, hints, city, country,
--       who acts
-- Answers {KEYS[1], 1 | 0, id}: 1 where a live session ended.

local reference, jti, token_expires_at = ARGV[1], ARGV[2], tonumber(ARGV[3])
local idle, ended_ttl, new_id = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local ip_address, user_agent, hints, city, country = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
acting = ARGV[12]

start_anew_if_lost()
local id = redis.call('HGET', sessions, 'r:' .. reference)
local record = id and load(id)
if not record then
  forget()
  while redis.call('HEXISTS', sessions, new_id) == 1 do
    new_id = text(tonumber(new_id) % 9007199254740991 + 1)
  end
  redis.call('HSET', sessions, 'r:' .. reference, new_id)
  record = {now, now, token_expires_at, 0, 0, '', 0, 0, 0,
            reference, jti, 'token', '', ip_address, user_agent, hints, city, country}
  finish(new_id, record, now, now, 'logged_out', 0, ended_ttl)
  return {sessions, 0, new_id}
end

if record[ENDED_AT] > 0 then
  remember(id, record, token_expires_at)
  return {sessions, 0, id}
end
local last_activity = tonumber(redis.call('ZSCORE', index, id) or record[CREATED_AT])
record[TOKEN_EXPIRES_AT] = math.max(record[TOKEN_EXPIRES_AT], token_expires_at)
local at, reason = due(id, record, last_activity, idle)
if at then
  settle(id, record, last_activity, at, reason, ended_ttl)
  return {sessions, 0, id}
end
finish(id, record, last_activity, now, 'logged_out', 0, ended_ttl)
return {sessions, 1, id}
