-- touch: the check of a session that is plainly live, as nearly every check is. It stands before the law (common.lua), which
-- takes as long to set up as this to run, and reads of a record its head alone (save() in common.lua). It decides nothing
-- else: what is not plain is left to check.lua, which replies the same to what is, and writes the same.

do
  local idle = struct.unpack('>d', ARGV[1])
  local stored = redis.call('HMGET', KEYS[1], 'r:' .. ARGV[2], 'i', 'b')
  local id, entries, not_before = stored[1], stored[2], stored[3]
  local packed = id and entries and redis.call('HGET', KEYS[1], id)
  if packed and #packed > 25 and #entries >= 16 then
    local clock = redis.call('TIME')
    local now = clock[1] * 1000000 + clock[2]
    local created_at, expires_at, token_expires_at, flags = struct.unpack('>dddB', packed)
    local before, spared = 0, nil
    if not_before then before, spared = string.match(not_before, '^(%d+) (%d+) [a-z_]+ ?%d*$') end
    local place = string.find(entries, struct.pack('>d', id), 1, true)
    local last_activity = place and place % 16 == 1 and struct.unpack('>d', entries, place + 8) or 0
    -- A comparison with NaN is false. A session that was not active later than now is judged by this clock, whatever the
    -- caller's is: present() in common.lua.
    if before and (created_at > tonumber(before) or id == spared)
      and created_at >= 0 and created_at <= now and expires_at > now and expires_at <= 9007199254740992
      and token_expires_at >= tonumber(ARGV[5]) and token_expires_at <= 9007199254740992
      and last_activity > 0 and last_activity <= now and (idle == 0 or flags == 1 or last_activity + idle > now)
      and flags == tonumber(ARGV[6]) then
      local touched = struct.pack('>d', math.max(now, last_activity + 1))
      entries = string.sub(entries, 1, place + 7) .. touched .. string.sub(entries, place + 16)
      redis.call('HSET', KEYS[1], 'i', entries)
      return {KEYS[1], 'touched', id, '', 0}
    end
  end
end

