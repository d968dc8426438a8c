-- The audit log, first half. A script appends what it did to the user's outbox in the same step as the change, so no
-- change can go unrecorded, whichever process dies. A Gatekeeper moves the entries to the stream (sessions/outbox.py).
--
--   KEYS[4] outbox  list  packed: {event, session id, instant, reason, actor as JSON or '', jti, its expiry, jti, …}
--
-- `actor` says who called (sessions/events.py, Actor); it stays '' for what happens without a caller.

local outbox, actor = KEYS[4], ''
-- Entries leave within moments. Should no Gatekeeper ever come for them, they expire after a week.
local OUTBOX_MILLISECONDS = 604800000

-- Events of fewer scripts are in upkeep.lua and opening.lua, so that a check need not load them first.
local function append_to_outbox(entry)
  redis.call('RPUSH', outbox, cmsgpack.pack(entry))
  redis.call('PEXPIRE', outbox, OUTBOX_MILLISECONDS)
end

-- Records that a session has ended, with every access token of it that has a `jti` and has not expired: outbox.py writes
-- one mirror key for each. Older tokens have a `jti` of their own only where the newest one's is its reference.
local function record_session_ended(id, at, reason, now, newest)
  local entry = {'session_ended', id, at, reason, at == now and actor or ''}
  local function add(jti, expires_at)
    if jti ~= '' and expires_at > now then
      entry[#entry + 1] = jti
      entry[#entry + 1] = expires_at
    end
  end
  add(newest.jti, newest.expires_at)
  local older = newest.jti == newest.reference and redis.call('HGET', KEYS[1], 't:' .. id)
  for _, name in ipairs(older and cmsgpack.unpack(older) or {}) do
    local jti = string.match(name[1], '^r:([^:]+)$')
    if jti then add(jti, name[2]) end
  end
  append_to_outbox(entry)
end

