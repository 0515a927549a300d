-- List histories, a step at a time, and for how long each is kept yet: that is the longer, the later its room's last
-- message came.
--
-- ARGV  1 cursor, 0 at first   2 what the key of a history starts with   3 about how many keys to look at
-- Gives {cursor, 0 at last, key, milliseconds, …}; a history may come twice.

local scan = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2] .. '*', 'COUNT', ARGV[3], 'TYPE', 'stream')
local answer = {scan[1]}
for _, key in ipairs(scan[2]) do
  answer[#answer + 1], answer[#answer + 2] = key, redis.call('PTTL', key)
end
return answer
