-- check: a verified token asks to pass. Finds its session, judges it and moves its last activity, or opens one (adopt.lua).
-- It runs for every request, so it stands before all that only an opening needs, and its arguments are positions.
-- Replies {KEYS[1], 'touched' | 'opened', id, '', how many were evicted}
--         {KEYS[1], 'ended', id, end reason, 0}   the session has ended
--         {KEYS[1], 'unknown', '0', '', 0}        there is none, and this token may not open one
--         {KEYS[1], 'full', '0', '', 0}           there is no room, by policy `reject`
--         {KEYS[1], 'older', '0', '', 0}          the digest of the token decides, and the caller left it out
--         {KEYS[1], 'absent', '0', '', 0}         there is none, and the caller left out `packed_call`
--         {KEYS[1], 'lost', '0', '', 0}           there is none, and the store has lost data since the caller's last look
--         {KEYS[1], 'crowded', id, '', 0}         its session had no room for it (renew.lua)
--         {KEYS[1], 'doubtful', id, '', 0}        the session would have ended, were it not for clocks that disagree

local _, reference, jti, issued_at, token_expires_at, exempt, host, packed_call = unpack(ARGV)
token_expires_at, exempt = tonumber(token_expires_at), tonumber(exempt)
rules.idle, rules.ended_ttl, rules.tolerance = struct.unpack('>ddd', ARGV[1])
compare_clocks(tonumber(host) * 1000000, rules.tolerance)
read_not_before(redis.call('HGET', sessions, 'b'))

local id = redis.call('HGET', sessions, 'r:' .. reference)
local record = id and load(id)
local earlier = record and record[EARLIER]
-- Whether the token is one of before a login (EARLIER): adopt.lua finds its session then. Where its digest decides, it
-- stands behind the instant in `issued_at`.
local is_older = earlier and earlier[1] == reference and tonumber(string.match(issued_at, '^%S+')) <= earlier[2]
if is_older then
  local digest = string.match(issued_at, ' (.*)$')
  if not digest then return {sessions, 'older', '0', '', 0} end
  is_older = redis.call('HGET', sessions, 'p:' .. digest) ~= id
end
if id and not is_older then
  -- A reference without a record, or a live record that the index does not call live, is damage. It opens nothing.
  if not record then return {sessions, 'unknown', '0', '', 0} end
  if record[ENDED_AT] > 0 then
    keep_ended(id, record, token_expires_at)
    return {sessions, 'ended', id, record[END_REASON], 0}
  end
  local last_activity = score_of(id) or 0
  if last_activity <= 0 then return {sessions, 'unknown', '0', '', 0} end

  local newer, exempted = token_expires_at > record[TOKEN_EXPIRES_AT], exempt ~= record[EXEMPT]
  local seen_until = record[TOKEN_EXPIRES_AT]
  if newer then record[TOKEN_EXPIRES_AT], record[JTI] = token_expires_at, jti end
  -- Judged by the exemption of the request before: this one may not exempt a session that is idle already.
  local at, reason = due(id, record, last_activity)
  if at then
    settle(id, record, last_activity, at, reason)
    return {sessions, 'ended', id, reason, 0}
  end
  if doubtful then return {sessions, 'doubtful', id, '', 0} end
  if newer or exempted then
    record[EXEMPT] = exempt
    if newer and record[REFERENCE] ~= reference then
      -- The token that expires last has an older name: the two names change places.
      local names = cmsgpack.unpack(redis.call('HGET', sessions, 't:' .. id) or cmsgpack.pack({}))
      for _, name in ipairs(names) do
        if name[1] == 'r:' .. reference then name[1], name[2] = 'r:' .. record[REFERENCE], seen_until end
      end
      redis.call('HSET', sessions, 't:' .. id, cmsgpack.pack(names))
      record[REFERENCE] = reference
    end
    save(id, record)
    keep_until(token_expires_at)
  end
  set_score(id, math.max(present(last_activity), last_activity + 1))
  return {sessions, 'touched', id, '', 0}
end
