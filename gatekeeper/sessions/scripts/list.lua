-- list: the sessions of a user, newest activity first, at most STEP.
-- call: include_inactive; include_hidden (true: with those that a revocation hid)
-- Replies {KEYS[1], {id, last activity, record, particulars}, …}

start_anew_if_lost()
forget()
local rows = live(false)
if call.include_inactive then
  sweep(STEP, before)
  local entries = scores('-inf', '(0', STEP)
  for i = 1, #entries, 2 do
    local id = entries[i]
    local record = entry(id)
    if record and (record[HIDDEN] == 0 or call.include_hidden) then rows[#rows + 1] = {id, record, record[LAST_ACTIVITY]} end
  end
  table.sort(rows, function(a, b)
    if a[3] ~= b[3] then return a[3] > b[3] end
    return tonumber(a[1]) > tonumber(b[1])
  end)
end

local reply = {sessions}
for i = 1, math.min(#rows, STEP) do
  reply[i + 1] = {rows[i][1], text(rows[i][3]), cmsgpack.pack(rows[i][2]), particulars(rows[i][1])}
end
return reply
