-- Say who is in a room.
--
-- KEYS  1 the room's presence: a hash of version, and of each worker that has somebody there
-- ARGV  1 what the key of whom a worker has there starts with, before worker:room: a hash of author to
--       an entry (presence.lua)   2 the room
--       3 what the sign of life of each worker starts with   4 the most members of whom each one is told
-- Gives {version, members, author, entry, author, entry, …}; none where they are too many.

local answer, members = {'0', 0}, 0
for _, worker in ipairs(redis.call('HKEYS', KEYS[1])) do
  if worker ~= 'version' and redis.call('EXISTS', ARGV[3] .. worker) == 1 then
    local key = ARGV[1] .. worker .. ':' .. ARGV[2]
    members = members + redis.call('HLEN', key)
    if members <= tonumber(ARGV[4]) then
      for _, each in ipairs(redis.call('HGETALL', key)) do
        answer[#answer + 1] = each
      end
    end
  end
end
answer[1] = redis.call('HGET', KEYS[1], 'version') or '0'
answer[2] = members
if members <= tonumber(ARGV[4]) then
  return answer
end
return {answer[1], answer[2]}
