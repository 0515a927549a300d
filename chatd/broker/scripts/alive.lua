-- Give a sign of life, and say of rooms where something has to be done, for nobody else may do it.
--
-- KEYS  each room's presence: a hash of version, and of each worker that has somebody there
-- ARGV  1 worker   2 what the sign of life of each worker starts with   3 seconds until it counts as dead
--       4 seconds to keep all that   5 what the key of whom a worker has somewhere starts with, before worker:room
--       6 what the key of a room's nicks starts with   7 the same of its members with an owner   8 …: the rooms
-- Gives {version, whether a worker there is dead, or this one is not there (1) or nothing is to be done (0), …}.

redis.call('SET', ARGV[2] .. ARGV[1], 1, 'EX', ARGV[3])
local known, answer = {[ARGV[1]] = 1}, {}
for i, key in ipairs(KEYS) do
  local here, work = false, 0
  for _, worker in ipairs(redis.call('HKEYS', key)) do
    if worker ~= 'version' then
      known[worker] = known[worker] or redis.call('EXISTS', ARGV[2] .. worker)
      here = here or worker == ARGV[1]
      if known[worker] == 0 then
        work = 1
      end
    end
  end
  if here then
    redis.call('EXPIRE', ARGV[5] .. ARGV[1] .. ':' .. ARGV[7 + i], ARGV[4])
    redis.call('EXPIRE', ARGV[6] .. ARGV[7 + i], ARGV[4])
    redis.call('EXPIRE', ARGV[7] .. ARGV[7 + i], ARGV[4])
    redis.call('EXPIRE', key, ARGV[4])
  else
    work = 1
  end
  answer[#answer + 1] = redis.call('HGET', key, 'version') or '0'
  answer[#answer + 1] = work
end
return answer
