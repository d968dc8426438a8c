-- link: which session tokens name, without a touch: what is asked before a refresh, and by an introspection.
-- ARGV: idle, ended_ttl, the digest of a refresh token or '', the reference of an access token or '', when that expires,
--       when it was issued
-- Answers {KEYS[1], 'live', id, '', expires_at, 1|0}  where both name one, that of the refresh token
--         {KEYS[1], 'ended', id, end reason, 0, 0}    one of them names a session that is over
--         {KEYS[1], 'crowded', id, '', expires_at, 1|0}  it is live, and has more access tokens alive than anybody needs
--         {KEYS[1], 'unknown', '0', '', not_before, 0}  neither is known
-- The last is 1 where the refresh token is the newest of its session.

local idle, ended_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local refresh, reference, token_expires_at = ARGV[3], ARGV[4], tonumber(ARGV[5])
local MOST_TOKENS = 1000

start_anew_if_lost()
local found
for _, field in ipairs({refresh ~= '' and 'f:' .. refresh, reference ~= '' and 'r:' .. reference}) do
  local id = field and redis.call('HGET', sessions, field)
  local word, record = state(id, idle, ended_ttl)
  if word == 'ended' then
    if string.sub(field, 1, 2) == 'r:' then remember(id, record, token_expires_at) end
    return {sessions, 'ended', id, record[END_REASON], '0', 0}
  end
  if not id and field == 'r:' .. reference then
    local out, reason = signed_out_at_the_provider(reference, tonumber(ARGV[6]))
    if out then return {sessions, 'ended', out, reason, '0', 0} end
  end
  if word and not found then found = {sessions, 'live', id, '', text(record[EXPIRES_AT]), record[REFRESH] == refresh and 1 or 0} end
end
if not found then return {sessions, 'unknown', '0', '', text(before), 0} end
local names = redis.call('HGET', sessions, 't:' .. found[3])
if names then
  local alive = 0
  for _, name in ipairs(cmsgpack.unpack(names)) do
    if string.sub(name[1], 1, 2) == 'r:' and name[2] > now then alive = alive + 1 end
  end
  if alive >= MOST_TOKENS then return {sessions, 'crowded', found[3], '', found[5], found[6]} end
end
return found
