-- The law of a session. Every script of this folder but attempts.lua, learn.lua and trim_audit.lua begins with audit.lua and this file, and no other
-- program changes a session.
--
-- Keys, all in the hash slot of one user. A check of a live session touches the first alone.
--   KEYS[1] sessions    hash    <id>          → the record (fields below), packed
--                               r:<reference> → <id>: the session that an access token names
--                               f:<digest>    → <id>: the session that a refresh token names, by its SHA-256
--                               p:<digest>    → <id>: the session of a token that a login handed out, by the SHA-256 of
--                                               its payload; only where its `iat` does not tell (EARLIER below)
--                               x:<reference> → <id>: the session of an access token for which it had no room; `x:` of any
--                                               token of the user that is unknown; n:<id> → how many: renew.lua
--                               t:<id>        → other names of a session, packed: {field, when its token expires}, …
--                               c:<id>        → the claims for the access tokens issued to it, as JSON
--                               m:<id>        → what only lists show of it, packed: {client, user name, given name}
--                               u:<id>        → the refresh token whose successor its newest one is: rotate.lua
--                               i             → the index: of each session its id and its score, eight bytes each; or
--                                               `key`: the user has too many for that, and they are in KEYS[2].
--                                               score > 0: live; the score is the last activity
--                                               score < 0: ended; minus the instant from which the record may be deleted
--                               b             → a copy of KEYS[3], by which the sessions of this hash are judged
--   KEYS[2] index       zset    the index of a user with many sessions
--                       string  of any other user, once a session has ended: the hash exists. If it does not, it was lost
--   KEYS[3] not_before  string  "<instant> <spared id or 0> <end reason>": every session created until that instant has
--                               ended, except the spared one. A fourth word, where the instant is later than the call
--                               was: a token issued until then opens no session. It never expires, because an old
--                               token may turn up however late
--   KEYS[4] outbox      list    entries for the audit log: audit.lua
--
-- States: a session is live, or ended with one of the end reasons (EndReason in models.py).
-- Moves:
--   (nothing) → live       check.lua and refresh.lua, for a token issued after not_before; login.lua, for any token
--   (nothing) → ended      logout.lua and end_sid.lua, for a token never seen, so that it cannot open a session later
--   live      → live       check.lua, login.lua, refresh.lua, rotate.lua, find.lua: the last activity grows, strictly, and
--                          names may be added; streams.lua: the last activity alone
--   live      → ended      any script, once: end reason and `ended_at` never change afterwards. As idle or expired only
--                          while the clocks agree (compare_clocks)
--   ended     → ended      only `hidden` may change (0 → 1), and the record may be kept longer
--   ended     → (nothing)  forget() in upkeep.lua, once every token known of it has expired, refresh tokens included,
--                          and while the clocks agree
--   any       → (nothing)  the store itself has lost `sessions` or `index`: the rest of the user's data is deleted, and
--                          not_before refuses every token issued until then
-- There is no other move; above all, none from ended to live.
--
-- A name never moves from one session to another, with these exceptions, all in login.lua: a refresh token or a payload
-- that a login response repeats, and the reference of an ended session, under which a login opens a new one. The older
-- tokens of that reference still name the ended session: EARLIER below, session_of() in upkeep.lua.
--
-- Arguments: ARGV[1] is the packed table of rules (Rules in keys.py): `idle` (0: off), `ttl`, `ended_ttl`, `limit`
-- (0: off), `policy`, `unknown`, `tolerance`. ARGV[2] is the packed table of what the script itself is called with:
-- arguments.lua.
-- check.lua alone reads positions: unpacking two tables would cost the script of every request about 5 % of its time.
--
-- Instants and durations are microseconds by the server's clock. Lua holds whole numbers exactly up to 2^53; '%.0f'
-- prints them.

local sessions, index, not_before = KEYS[1], KEYS[2], KEYS[3]
-- Set by check.lua (the two fields that it needs) or upkeep.lua (all).
local rules = {}

-- The fields of a record, by position. `TOKEN_EXPIRES_AT` is the latest expiry of all access tokens seen, leeway included;
-- `REFRESH_EXPIRES_AT` that of all refresh tokens, 0 without any. `REFERENCE`, `JTI` and `REFRESH` are those of the newest.
-- Five more describe the client, and no script reads them: new_record() in upkeep.lua.
local CREATED_AT, EXPIRES_AT, TOKEN_EXPIRES_AT, EXEMPT = 1, 2, 3, 4
local ENDED_AT, END_REASON, HIDDEN, LAST_ACTIVITY, REFRESH_EXPIRES_AT = 5, 6, 7, 8, 9
local REFERENCE, JTI, LOGIN_METHOD, REFRESH = 10, 11, 12, 13
-- The last field, absent from most records: {reference, until, id, end reason, kept until}. The reference named session
-- `id` before a login opened this one under it. A token of the reference that was issued `until` then, or that does not
-- say when, names that ended session, unless `p:<digest>` says that a login of this one handed it out. This record is
-- kept at least until `kept until`.
local EARLIER = 19

-- The keys of a user stay for this long after they are needed, because the store deletes them by its own clock: one that
-- is ahead by less loses no ended session whose tokens have not expired. Milliseconds.
local SPARE_TIME = 86400000

-- The most sessions that one call looks at; later calls do the rest.
local STEP = 1000

local function text(number)
  return string.format('%.0f', number)
end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
-- Set by compare_clocks(): whether the clocks disagree, and the instant as tokens count it, whose `iat` is not of the
-- store's clock. `doubtful`, set by due(): a session would have ended, and has not because the clocks disagree.
local store_now, apart, token_now, doubtful = now, false, now, false

-- Compares this clock with that of the calling host. Which of two that disagree is right cannot be told, so no session
-- ends as idle or expired then (due()), and nothing is forgotten. What is opened and ended gets the later instant, which
-- is not long ago once the earlier clock is put right.
local function compare_clocks(host, tolerance)
  local ahead = host - now
  if ahead <= tolerance and -ahead <= tolerance then return end
  apart, token_now = true, host
  if ahead > 0 then now = host end
end

-- The instant by which a session is judged, and which a touch writes: that of the store, unless the session was active
-- a minute later than that. Then the store's clock has been put back.
local function present(last_activity)
  return last_activity - store_now > 60000000 and now or store_now
end

local before, spared, before_reason, tokens_before = 0, '0', '', 0

-- Reads a value of `not_before`. Of the key and the field of that name the later one holds, should one be lost.
local function read_not_before(stored)
  if not stored then return end
  local at, id, reason, tokens_at = string.match(stored, '^(%d+) (%d+) ([a-z_]+) ?(%d*)$')
  if not at then error('not_before is garbled') end
  if tonumber(at) < before then return end
  before, spared, before_reason = tonumber(at), id, reason
  tokens_before = tonumber(tokens_at) or before
end

-- The index

-- A user with more sessions than this has KEYS[2].
local MOST_IN_FIELD = 32
local IN_KEY = 'key'

-- Where the entry of a session begins in the field `i`, or nil.
local function place_of(id, entries)
  local packed, place = struct.pack('>d', id), 0
  repeat
    place = string.find(entries, packed, place + 1, true)
  until not place or place % 16 == 1
  return place
end

-- The score of a session, or nil.
local function score_of(id)
  local entries = redis.call('HGET', sessions, 'i')
  if not entries then return nil end
  if entries == IN_KEY then return tonumber(redis.call('ZSCORE', index, id) or '') end
  local place = place_of(id, entries)
  return place and (struct.unpack('>d', entries, place + 8))
end

local function set_score(id, score)
  local entries = redis.call('HGET', sessions, 'i') or ''
  local place = entries ~= IN_KEY and place_of(id, entries)
  if place then
    entries = string.sub(entries, 1, place + 7) .. struct.pack('>d', score) .. string.sub(entries, place + 16)
  elseif entries ~= IN_KEY and #entries < 16 * MOST_IN_FIELD then
    entries = entries .. struct.pack('>dd', id, score)
  elseif entries == IN_KEY then
    redis.call('ZADD', index, text(score), id)
    return
  else
    redis.call('DEL', index)
    for at = 1, #entries, 16 do
      local each, its_score = struct.unpack('>dd', entries, at)
      redis.call('ZADD', index, text(its_score), text(each))
    end
    redis.call('ZADD', index, text(score), id)
    local left = redis.call('PTTL', sessions)
    if left > 0 then redis.call('PEXPIRE', index, left) end
    entries = IN_KEY
  end
  redis.call('HSET', sessions, 'i', entries)
end

-- A record begins with three instants, eight bytes each, and a byte of flags: exempt, ended, has EARLIER. The other fields
-- follow as MessagePack.
local HEAD, RANGE = 25, 9007199254740992

-- The record of a session, or nil. A record that another program garbled raises an error, so it admits no token: NaN, for
-- one, is neither before nor after any instant, and would never expire.
local function load(id)
  local packed = redis.call('HGET', sessions, id)
  if not packed then return nil end
  local created_at, expires_at, token_expires_at, flags = struct.unpack('>dddB', packed)
  local record = {created_at, expires_at, token_expires_at, flags % 2}
  local rest = cmsgpack.unpack(string.sub(packed, HEAD + 1))
  for field = ENDED_AT, EARLIER do record[field] = rest[field - EXEMPT] end
  if record[JTI] == true then record[JTI] = record[REFERENCE] end
  for field = CREATED_AT, REFRESH_EXPIRES_AT do
    if field ~= END_REASON and not (record[field] >= 0 and record[field] <= RANGE) then error('a record is garbled') end
  end
  local earlier = record[EARLIER]
  if earlier and not (earlier[2] >= 0 and earlier[2] <= RANGE) then error('a record is garbled') end
  if flags ~= record[EXEMPT] + (record[ENDED_AT] > 0 and 2 or 0) + (earlier and 4 or 0) then error('a record is garbled') end
  return record
end

-- Stores a record. Where the `jti` equals the reference, `true` (one byte) takes its place.
local function save(id, record)
  local rest = {unpack(record, ENDED_AT, EARLIER)}
  if record[JTI] == record[REFERENCE] then rest[JTI - EXEMPT] = true end
  local flags = record[EXEMPT] + (record[ENDED_AT] > 0 and 2 or 0) + (record[EARLIER] and 4 or 0)
  local head = struct.pack('>dddB', record[CREATED_AT], record[EXPIRES_AT], record[TOKEN_EXPIRES_AT], flags)
  redis.call('HSET', sessions, id, head .. cmsgpack.pack(rest))
end

-- Makes the keys of the user live until `instant`, or longer.
local function keep_until(instant)
  local milliseconds = math.ceil((instant - store_now) / 1000) + SPARE_TIME
  for _, key in ipairs({sessions, index}) do
    if redis.call('PTTL', key) < milliseconds then
      redis.call('PEXPIRE', key, text(milliseconds))
    end
  end
end

-- The instant and the reason for which a session that is stored as live has ended by itself, or by not_before: the
-- earliest that applies. Nil while it is live, and where it is doubtful.
local function due(id, record, last_activity)
  local now, at, reason = apart and present(last_activity) or now
  if record[CREATED_AT] <= before and id ~= spared then
    at, reason = before, before_reason
  end
  if record[EXPIRES_AT] <= now and (not at or record[EXPIRES_AT] < at) then
    at, reason = record[EXPIRES_AT], 'expired'
  end
  local idle_at = last_activity + rules.idle
  if rules.idle > 0 and record[EXEMPT] == 0 and idle_at <= now and (not at or idle_at < at) then
    at, reason = idle_at, 'idle'
  end
  if apart and (reason == 'idle' or reason == 'expired') then
    if record[CREATED_AT] <= before and id ~= spared then return before, before_reason end
    doubtful = true
    return nil
  end
  return at, reason
end

-- Publishes a revocation for the processes that hold open streams of the user (sessions/revocations.py): of the session
-- `target`, or of all but one (`*<id>`). pcall, because a store whose ACL forbids the channel must not fail the script; a
-- process that misses the message learns of it from streams.lua.
local function announce(target, reason)
  redis.pcall('PUBLISH', string.match(sessions, '^[^{]*') .. 'ends', target .. ' ' .. reason .. ' ' .. sessions)
end

-- live → ended, without an announcement. The record stays for `ended_ttl`, and until its last known token has expired.
local function record_end(id, record, last_activity, at, reason, hidden)
  record[ENDED_AT], record[END_REASON], record[HIDDEN] = at, reason, hidden
  record[LAST_ACTIVITY] = last_activity
  save(id, record)
  local forget_at = math.max(now + rules.ended_ttl, record[TOKEN_EXPIRES_AT], record[REFRESH_EXPIRES_AT],
                             record[EARLIER] and record[EARLIER][5] or 0)
  set_score(id, -forget_at)
  redis.call('SETNX', index, '')
  keep_until(forget_at)
  record_session_ended(id, at, reason, now,
                       {jti = record[JTI], reference = record[REFERENCE], expires_at = record[TOKEN_EXPIRES_AT]})
end

-- live → ended, announced.
local function finish(id, record, last_activity, at, reason, hidden)
  record_end(id, record, last_activity, at, reason, hidden)
  announce(id, reason)
end

-- live → ended for a session that due() found over. Those that "revoke all" ended are hidden from every list.
local function settle(id, record, last_activity, at, reason)
  local hidden = (reason == 'revoked_by_user' or reason == 'revoked_by_admin') and 1 or 0
  finish(id, record, last_activity, at, reason, hidden)
end

-- ended → ended: a token of an ended session was refused, and the record stays until that token has expired.
local function keep_ended(id, record, token_expires_at)
  local score = token_expires_at > record[TOKEN_EXPIRES_AT] and score_of(id)
  -- Without a score the store has lost the index. One entry must not bring it back: start_anew_if_lost() looks for that.
  if not score then return end
  record[TOKEN_EXPIRES_AT] = token_expires_at
  save(id, record)
  if -score < token_expires_at then
    set_score(id, -token_expires_at)
    keep_until(token_expires_at)
  end
end
