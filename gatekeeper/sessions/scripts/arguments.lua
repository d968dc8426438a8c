-- The arguments of a script, by name: a packed table, for every script but check.lua. `actor` is among them where the
-- script writes to the audit log (audit.lua).
local call = cmsgpack.unpack(ARGV[2])
actor = call.actor or ''
