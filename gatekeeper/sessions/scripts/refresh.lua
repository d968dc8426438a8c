-- refresh: a backend has renewed tokens, and these are the new ones.
-- call: opening (the new tokens, and the session that they open where there is none: opening.lua), linked (the id of the
--       session that the request's own tokens name, by lookup.lua, or '0'), adopt_not_before (epoch.lua), more and
--       learnt_expires_at (add_besides() in opening.lua), actor
-- Replies as sign_in.lua says: 'touched' (the tokens belong to session `linked` now, or to one that they name already),
-- 'opened' (neither they nor the old ones were known), 'ended', 'unknown' (they may not open one), 'full', 'doubtful'

local opening, linked = call.opening, call.linked

start_anew_if_lost()
local status, record, last_activity = state(linked ~= '0' and linked)
if status == 'ended' then return reply('ended', linked, record[END_REASON]) end
if status == 'doubtful' then return reply('doubtful') end
if linked ~= '0' and not status then return reply('unknown') end
local id, _, gone = session_of(opening.reference, opening.issued_at, opening.digest, opening.token_expires_at)
if gone then return reply('ended', id, gone) end
if id and id ~= linked then
  linked = id
  status, record, last_activity = state(id)
  if status == 'doubtful' then return reply('doubtful') end
  if status ~= 'live' then return status and reply('ended', id, record[END_REASON]) or reply('unknown') end
end
if status == 'live' then
  -- One refresh may be reported in two steps, of which the second brings no other access token: it is recorded once.
  if record[REFERENCE] ~= opening.reference or record[JTI] ~= opening.jti
    or record[TOKEN_EXPIRES_AT] < opening.token_expires_at then
    record_refreshed(linked, now)
  end
  join(linked, record, last_activity, opening)
  add_besides(linked, call)
  return reply('touched', linked, '', 0, record[EXPIRES_AT])
end
local not_earlier = math.max(tokens_before, call.adopt_not_before)
if rules.unknown == 'reject' or (not_earlier > 0 and opening.issued_at <= not_earlier) then return reply('unknown') end
local out, reason = signed_out_at_the_provider(opening.reference, opening.issued_at)
if out then return reply('ended', out, reason) end
local opened = open_and_reply(opening)
if opened[2] == 'opened' then add_besides(opened[3], call) end
return opened
