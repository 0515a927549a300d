-- Add up what addresses use on all workers: the connections that they have now, and what is counted.
--
-- KEYS  the addresses: hashes of what is counted, ever, and for each worker "connections time"
-- ARGV  1 worker   2 seconds after which what a worker told is not so any more   3 seconds to keep an address
--       then for each address: connections now, and since the last time each of what is counted
-- Returns for each address {connections, what is counted, …}, of all workers together, as one list.

local counted = {'arrivals', 'rooms', 'requests', 'messages', 'bytes'}
local now = tonumber(redis.call('TIME')[1])
local totals = {}
local at = 4
for _, key in ipairs(KEYS) do
  if ARGV[at] == '0' then
    redis.call('HDEL', key, 'w:' .. ARGV[1])
  else
    redis.call('HSET', key, 'w:' .. ARGV[1], ARGV[at] .. ' ' .. now)
  end
  for i, name in ipairs(counted) do
    if ARGV[at + i] ~= '0' then
      redis.call('HINCRBY', key, name, ARGV[at + i])
    end
  end
  redis.call('EXPIRE', key, ARGV[3])
  local sum, known, ever = 0, redis.call('HGETALL', key), {}
  for field = 1, #known, 2 do
    local name, value = known[field], known[field + 1]
    if string.sub(name, 1, 2) == 'w:' then
      local count, told = string.match(value, '(%d+) (%d+)')
      if now - tonumber(told) > tonumber(ARGV[2]) then
        redis.call('HDEL', key, name)
      else
        sum = sum + tonumber(count)
      end
    else
      ever[name] = tonumber(value)
    end
  end
  totals[#totals + 1] = sum
  for _, name in ipairs(counted) do
    totals[#totals + 1] = ever[name] or 0
  end
  at = at + 1 + #counted
end
return totals
