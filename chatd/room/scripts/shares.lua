-- Add up what addresses do on all workers: the connections that they have, those that they began, the rooms they made.
--
-- KEYS  the addresses: hashes of arrivals and rooms, ever, and for each worker "connections time"
-- ARGV  1 worker   2 seconds after which what a worker told is not so any more   3 seconds to keep an address
--       then for each: connections now, and since the last time arrivals and rooms
-- Gives {connections, arrivals, rooms, …}, of all workers together.

local now = tonumber(redis.call('TIME')[1])
local totals = {}
for i, key in ipairs(KEYS) do
  local connections, arrivals, rooms = unpack(ARGV, 3 * i + 1, 3 * i + 3)
  if connections == '0' then
    redis.call('HDEL', key, 'w:' .. ARGV[1])
  else
    redis.call('HSET', key, 'w:' .. ARGV[1], connections .. ' ' .. now)
  end
  totals[3 * i - 1] = redis.call('HINCRBY', key, 'arrivals', arrivals)
  totals[3 * i] = redis.call('HINCRBY', key, 'rooms', rooms)
  redis.call('EXPIRE', key, ARGV[3])
  local sum, known = 0, redis.call('HGETALL', key)
  for at = 1, #known, 2 do
    if string.sub(known[at], 1, 2) == 'w:' then
      local count, told = string.match(known[at + 1], '(%d+) (%d+)')
      if now - tonumber(told) > tonumber(ARGV[2]) then
        redis.call('HDEL', key, known[at])
      else
        sum = sum + tonumber(count)
      end
    end
  end
  totals[3 * i - 2] = sum
end
return totals
