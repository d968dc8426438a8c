-- What the audit trail is to tell. A script leaves it in the user's own slot, in the same step as the act; a process takes
-- it from there to the stream (sessions/outbox.py). So nothing happens without a record, whoever dies when.
--
--   KEYS[4] outbox  list  packed: {event, session id, instant, reason, who acts as JSON or '', jti, its expiry, jti, …}
--
-- A script that acts sets `acting`: its last argument. What came about by itself is nobody's act.

local outbox, acting = KEYS[4], ''
-- It leaves within moments. Should nobody ever come for it: a week.
local OUTBOX_MILLISECONDS = 604800000

-- What only some scripts tell is said there (upkeep.lua, opening.lua): a touch is not to wait for it.
local function leave_word(entry)
  redis.call('RPUSH', outbox, cmsgpack.pack(entry))
  redis.call('PEXPIRE', outbox, OUTBOX_MILLISECONDS)
end

-- The end of a session, with the access tokens of it that have an id and live on: the mirror names those. Where the newest
-- goes by its `jti`, so do the older ones.
local function tell_ended(id, at, reason, now, newest)
  local word = {'session_ended', id, at, reason, at == now and acting or ''}
  local function name(jti, expires_at)
    if jti ~= '' and expires_at > now then
      word[#word + 1] = jti
      word[#word + 1] = expires_at
    end
  end
  name(newest.jti, newest.expires_at)
  local older = newest.jti == newest.reference and redis.call('HGET', KEYS[1], 't:' .. id)
  for _, each in ipairs(older and cmsgpack.unpack(older) or {}) do
    local jti = string.match(each[1], '^r:([^:]+)$')
    if jti then name(jti, each[2]) end
  end
  leave_word(word)
end

