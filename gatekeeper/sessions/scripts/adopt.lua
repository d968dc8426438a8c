-- The rest of check.lua: a token that names no session opens one.
-- ARGV[19], ARGV[20]: the caller's `adopt_not_before` and epoch (epoch.lua). KEYS[5] is the key of the epoch, left out in
-- a Cluster, where it lies elsewhere: then a loss is known here as soon as the caller has looked.

acting = ARGV[21] or ''
local issued_at, unknown = tonumber(ARGV[3]), ARGV[10]
local adopt_not_before, epoch = tonumber(ARGV[19] or '0'), ARGV[20] or ''

start_anew_if_lost()
if unknown == 'reject' or (before > 0 and issued_at <= before) then return {sessions, 'unknown', '0', '', 0} end
local out, end_reason = signed_out_at_the_provider(reference, issued_at)
if out then return {sessions, 'ended', out, end_reason, 0} end
if not ARGV[13] then return {sessions, 'absent', '0', '', 0} end
if KEYS[5] and epoch ~= '' then
  local stored = redis.call('HMGET', KEYS[5], 'id', 'adopt_not_before')
  if stored[1] ~= epoch then return {sessions, 'lost', '0', '', 0} end
  adopt_not_before = math.max(adopt_not_before, tonumber(stored[2] or '0'))
end
if issued_at <= adopt_not_before and adopt_not_before > 0 then return {sessions, 'unknown', '0', '', 0} end
local opened, evicted = open(
  {id = ARGV[11], reference = reference, jti = jti, token_expires_at = token_expires_at, exempt = exempt,
   login_method = ARGV[13], ip_address = ARGV[14], user_agent = ARGV[15], hints = ARGV[16], city = ARGV[17],
   country = ARGV[18]},
  {idle = idle, ttl = tonumber(ARGV[6]), ended_ttl = ended_ttl, limit = tonumber(ARGV[8]), policy = ARGV[9]})
if not opened then return {sessions, 'full', '0', '', 0} end
return {sessions, 'opened', opened, '', evicted}
