-- Say how much memory the broker uses, and which worker makes room.
--
-- KEYS  1 where the name of that worker is
-- ARGV  1 a worker, which may become the one   2 milliseconds for which it is, unless it asks again
-- Gives {1 if it is the one, bytes used, bytes that may be used or 0}.

local worker = redis.call('GET', KEYS[1])
local chosen = worker == ARGV[1]
if chosen then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not worker then
  redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])  -- a full broker refuses it: then any worker may make room
  chosen = true
end
local info = redis.call('INFO', 'memory')
return {chosen and 1 or 0, tonumber(string.match(info, 'used_memory:(%d+)')), tonumber(string.match(info, 'maxmemory:(%d+)'))}
