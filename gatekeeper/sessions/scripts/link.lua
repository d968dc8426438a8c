-- link: which session tokens name, without a touch: what is asked before a refresh, and by an introspection.
-- ARGV: idle, ended_ttl, the digest of a refresh token or '', the reference of an access token or '', when that expires,
--       when it was issued
-- Answers {KEYS[1], 'live', id, '', expires_at}       where both name one, that of the refresh token
--         {KEYS[1], 'ended', id, end reason, 0}       one of them names a session that is over
--         {KEYS[1], 'crowded', id, '', 0}             it is live, and has more access tokens alive than anybody needs
--         {KEYS[1], 'unknown', '0', '', not_before}   neither is known

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
    return {sessions, 'ended', id, record[END_REASON], '0'}
  end
  if word and not found then found = {sessions, 'live', id, '', text(record[EXPIRES_AT])} end
end
if not found then
  local out, reason
  if reference ~= '' then out, reason = signed_out_at_the_provider(reference, tonumber(ARGV[6])) end
  if out then return {sessions, 'ended', out, reason, '0'} end
  return {sessions, 'unknown', '0', '', text(before)}
end
local names = redis.call('HGET', sessions, 't:' .. found[3])
if names then
  local alive = 0
  for _, name in ipairs(cmsgpack.unpack(names)) do
    if string.sub(name[1], 1, 2) == 'r:' and name[2] > now then alive = alive + 1 end
  end
  if alive >= MOST_TOKENS then return {sessions, 'crowded', found[3], '', '0'} end
end
return found
