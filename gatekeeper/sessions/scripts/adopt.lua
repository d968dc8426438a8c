-- adopt, the rest of check.lua: a token that names no session opens one; one of before a login names an ended one.
-- call: opening (opening.lua), adopt_not_before, epoch, actor. The first two instants and the epoch are explained in
-- epoch.lua. KEYS[5] is the key of the epoch. It is left out in a Cluster, where it lies on another node: a loss is known
-- there as soon as the caller has looked.

start_anew_if_lost()
local digest = string.match(issued_at, ' (.*)$')
issued_at = tonumber(string.match(issued_at, '^%S+'))
if is_older then
  local ended, _, reason = session_of(reference, issued_at, digest, token_expires_at)
  return {sessions, 'ended', ended, reason, 0}
end
local crowded = redis.call('HGET', sessions, 'x:' .. reference)
local owner = crowded or redis.call('HGET', sessions, 'x:')
local owner_status, owner_record = state(owner)
if owner_status == 'live' or owner_status == 'doubtful' then return {sessions, 'crowded', owner, '', 0} end
if crowded and owner_record then
  keep_ended(owner, owner_record, token_expires_at)
  return {sessions, 'ended', owner, owner_record[END_REASON], 0}
end
if rules.unknown == 'reject' or (tokens_before > 0 and issued_at <= tokens_before) then return {sessions, 'unknown', '0', '', 0} end
local out, end_reason = signed_out_at_the_provider(reference, issued_at)
if out then return {sessions, 'ended', out, end_reason, 0} end
if not packed_call then return {sessions, 'absent', '0', '', 0} end

local call = cmsgpack.unpack(packed_call)
actor = call.actor
local adopt_not_before = call.adopt_not_before
if KEYS[5] and call.epoch ~= '' then
  local stored = redis.call('HMGET', KEYS[5], 'id', 'adopt_not_before')
  if stored[1] ~= call.epoch then return {sessions, 'lost', '0', '', 0} end
  adopt_not_before = math.max(adopt_not_before, tonumber(stored[2] or '0'))
end
if issued_at <= adopt_not_before and adopt_not_before > 0 then return {sessions, 'unknown', '0', '', 0} end
local opened, evicted = open(call.opening)
if not opened then return {sessions, 'full', '0', '', 0} end
return {sessions, 'opened', opened, '', evicted}
