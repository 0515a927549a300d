-- List rooms, a step at a time: how many are in each, and where its order stands.
--
-- ARGV  1 cursor, 0 at first   2 what the key of a room starts with   3 what that of a room's presence starts with
--       4 what the key of whom a worker has somewhere starts with, before worker:room
--       5 what the sign of life of each worker starts with   6 run of this broker   7 about how many keys to look at
-- Gives {cursor, 0 at last, room, members, epoch, top, …}; a room may come twice, one without either never.

local scan = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2] .. '*', 'COUNT', ARGV[7], 'TYPE', 'hash')
local answer, known = {scan[1]}, {}
for _, key in ipairs(scan[2]) do
  local name = string.sub(key, #ARGV[2] + 1)
  local room = redis.call('HMGET', key, 'epoch', 'run', 'top')
  local members = 0
  for _, worker in ipairs(redis.call('HKEYS', ARGV[3] .. name)) do
    if worker ~= 'version' then
      known[worker] = known[worker] or redis.call('EXISTS', ARGV[5] .. worker)
      if known[worker] == 1 then
        members = members + redis.call('HLEN', ARGV[4] .. worker .. ':' .. name)
      end
    end
  end
  if room[1] and room[2] == ARGV[6] and (members > 0 or room[3] ~= '0') then
    for _, each in ipairs({name, members, room[1], room[3]}) do
      answer[#answer + 1] = each
    end
  end
end
return answer
