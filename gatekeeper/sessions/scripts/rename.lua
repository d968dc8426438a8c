-- rename: gives a live session a name, or takes it away.
-- call: id, name ('' for none)
-- Replies {KEYS[1], last activity, record, particulars}, or {KEYS[1]} where there is no such live session.

start_anew_if_lost()
local status, record, last_activity = state(call.id)
if status ~= 'live' and status ~= 'doubtful' then return {sessions} end
local found = particulars(call.id)
found = found ~= '' and cmsgpack.unpack(found) or {'', '', ''}
found[3] = call.name
if found[1] == '' and found[2] == '' and found[3] == '' then
  redis.call('HDEL', sessions, 'm:' .. call.id)
else
  redis.call('HSET', sessions, 'm:' .. call.id, cmsgpack.pack(found))
end
return {sessions, text(last_activity), cmsgpack.pack(record), particulars(call.id)}
