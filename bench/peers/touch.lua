-- What a session check costs at least in one script: is the session KEYS[1] live? If so its activity moves, and it is
-- kept for ARGV[1] more seconds. Answers 1 for live, 0 for anything else.
if redis.call('HGET', KEYS[1], 'ended') ~= '0' then
  return 0
end
redis.call('HSET', KEYS[1], 'last_activity', redis.call('TIME')[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
