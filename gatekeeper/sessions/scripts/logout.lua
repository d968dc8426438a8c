-- logout: ends the session that a token names. A session that has ended stays as it is, also where a login has opened
-- another one under its reference, and is kept while this token lives. A token that was never seen, or whose record is lost, gets an ended record, so that it cannot open a session
-- afterwards.
-- call: opening (the fields of a new record: opening.lua), actor
-- Replies {KEYS[1], 1 | 0, id, record}: 1 where a live session ended; the record is packed, and '' of one that was found
-- idle or expired.

local opening = call.opening

start_anew_if_lost()
local id, record, reason = session_of(opening.reference, opening.issued_at, opening.digest, opening.token_expires_at)
if reason then return {sessions, 0, id, record and cmsgpack.pack(record) or ''} end
if not record then
  forget()
  id = unused_id(opening.id)
  redis.call('HSET', sessions, 'r:' .. opening.reference, id)
  opening.created_at, opening.expires_at = now, now
  record = new_record(opening)
  finish(id, record, now, now, 'logged_out', 0)
  return {sessions, 0, id, cmsgpack.pack(record)}
end

if record[ENDED_AT] > 0 then
  keep_ended(id, record, opening.token_expires_at)
  return {sessions, 0, id, cmsgpack.pack(record)}
end
local last_activity = score_of(id) or record[CREATED_AT]
record[TOKEN_EXPIRES_AT] = math.max(record[TOKEN_EXPIRES_AT], opening.token_expires_at)
local at, reason = due(id, record, last_activity)
if at then
  settle(id, record, last_activity, at, reason)
  return {sessions, 0, id, ''}
end
finish(id, record, last_activity, now, 'logged_out', 0)
return {sessions, 1, id, cmsgpack.pack(record)}
