-- What the scripts of a sign-in are told, alike: ARGV[1…6] the rules, ARGV[7…20] the tokens and who brings them, the last
-- one who acts.
acting = ARGV[#ARGV]
local rules = {idle = tonumber(ARGV[1]), ttl = tonumber(ARGV[2]), ended_ttl = tonumber(ARGV[3]),
               limit = tonumber(ARGV[4]), policy = ARGV[5], unknown = ARGV[6]}
local with = {id = ARGV[7], reference = ARGV[8], jti = ARGV[9], issued_at = tonumber(ARGV[10]),
              token_expires_at = tonumber(ARGV[11]), exempt = tonumber(ARGV[12]),
              refresh = ARGV[13], refresh_expires_at = tonumber(ARGV[14]), login_method = ARGV[15],
              ip_address = ARGV[16], user_agent = ARGV[17], hints = ARGV[18], city = ARGV[19], country = ARGV[20]}

-- {KEYS[1], word, id, end reason, how many were evicted, when the session expires}
local function answer(word, id, reason, evicted, expires_at)
  return {sessions, word, id or '0', reason or '', evicted or 0, text(expires_at or 0)}
end

local function open_and_answer(leaving)
  local id, evicted = open(with, rules, leaving)
  if not id then return answer('full') end
  return answer('opened', id, '', evicted, load(id)[EXPIRES_AT])
end
