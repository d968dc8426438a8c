-- Shared by login.lua and refresh.lua: the form of their replies.

-- {KEYS[1], outcome, id, end reason, how many were evicted, when the session expires}. The outcome 'doubtful': the session
-- would have ended, were it not for clocks that disagree (due() in common.lua).
local function reply(outcome, id, reason, evicted, expires_at)
  return {sessions, outcome, id or '0', reason or '', evicted or 0, text(expires_at or 0)}
end

local function open_and_reply(opening, leaving)
  local id, evicted = open(opening, leaving)
  if not id then return reply('full') end
  return reply('opened', id, '', evicted, load(id)[EXPIRES_AT])
end
