-- Count that a place was taken from a client that was still there: it may come back and take it in turn.
--
-- KEYS  1 the place: a hash; fights is how often that happened, less one for each time that passed since; fought when
-- ARGV  1 how often it may happen at once   2 seconds until it may once more

local place = redis.call('HMGET', KEYS[1], 'session', 'fights', 'fought')
if place[1] then
  local now = redis.call('TIME')[1]
  local fights = math.max(0, (place[2] or 0) - (now - (place[3] or now)) / ARGV[2])
  redis.call('HSET', KEYS[1], 'fights', tostring(math.min(fights + 1, ARGV[1])), 'fought', now)
end
