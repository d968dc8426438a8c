-- The rest of check.lua: a token that names no session opens one.

local issued_at, unknown = tonumber(ARGV[3]), ARGV[10]

start_anew_if_lost()
if unknown == 'reject' or (before > 0 and issued_at <= before) then return {sessions, 'unknown', '0', '', 0} end
local out, end_reason = signed_out_at_the_provider(reference, issued_at)
if out then return {sessions, 'ended', out, end_reason, 0} end
if not ARGV[13] then return {sessions, 'absent', '0', '', 0} end
local opened, evicted = open(
  {id = ARGV[11], reference = reference, jti = jti, token_expires_at = token_expires_at, exempt = exempt,
   login_method = ARGV[13], ip_address = ARGV[14], user_agent = ARGV[15], hints = ARGV[16], city = ARGV[17],
   country = ARGV[18]},
  {idle = idle, ttl = tonumber(ARGV[6]), ended_ttl = ended_ttl, limit = tonumber(ARGV[8]), policy = ARGV[9]})
if not opened then return {sessions, 'full', '0', '', 0} end
return {sessions, 'opened', opened, '', evicted}
