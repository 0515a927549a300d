-- Say where the order of each room stands, and keep those rooms from being forgotten: they are in use.
--
-- KEYS  the rooms: hashes of epoch, run and top
-- ARGV  1 run of this broker   2 seconds to remember a silent room
-- Gives {epoch, top, epoch, top, …}; an empty epoch where the room has none in this run.

local tops = {}
for _, key in ipairs(KEYS) do
  local room = redis.pcall('HMGET', key, 'epoch', 'run', 'top')  -- one that is no hash is not the others' trouble
  if room[1] and room[2] == ARGV[1] then
    redis.pcall('EXPIRE', key, ARGV[2])  -- to read goes on where writes are refused
    tops[#tops + 1], tops[#tops + 2] = room[1], room[3]
  else
    tops[#tops + 1], tops[#tops + 2] = '', '0'
  end
end
return tops
