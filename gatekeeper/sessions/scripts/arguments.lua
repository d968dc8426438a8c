-- The arguments of a script, by name: a packed table, for every script but check.lua. `actor` is among them where the
-- script writes to the audit log (audit.lua). `host` is the clock of the calling host.
local call = cmsgpack.unpack(ARGV[2])
actor = call.actor or ''
compare_clocks(call.host, rules.tolerance)
