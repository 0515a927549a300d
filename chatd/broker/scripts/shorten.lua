-- Free memory of a history: all of it if its room is silent, else the older half.
--
-- KEYS  1 the history
-- ARGV  1 the room is silent if the history is kept for no longer than so many milliseconds yet
-- Gives how many batches are gone.

local batches = redis.call('XLEN', KEYS[1])
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then
  return redis.call('XTRIM', KEYS[1], 'MAXLEN', math.ceil(batches / 2))
end
redis.call('DEL', KEYS[1])
return batches
