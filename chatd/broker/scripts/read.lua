-- Read a room's history from a position on, and where its order stands now.
--
-- KEYS  1 the room: a hash of epoch, run and top
-- ARGV  1 and 2 the history's key, but for the epoch that comes between
--       3 run of this broker   4 an epoch, should a new one be needed   5 seconds to remember a silent room
--       6 and 7 the position: epoch and offset; without an epoch nothing is read
--       8 about how many bytes to read
-- Gives {epoch, top, more than this there or 0, end, batch, batch, …}: batches are as they were published, all of one
-- epoch: the position's where it has any that follow, else the one of now. End is the position of the last of them,
-- "EPOCH OFFSET"; empty where there is none. A room that needs a new epoch is in the epoch "none" while the broker
-- refuses writes: nothing can be published in it.

local room = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'top')
local epoch, top = room[1], room[3]
if not epoch or room[2] ~= ARGV[3] then
  epoch, top = ARGV[4], '0'
  local begun = redis.pcall('HSET', KEYS[1], 'epoch', epoch, 'run', ARGV[3], 'top', top)
  if type(begun) == 'table' and begun.err then
    epoch = 'none'
  else
    redis.call('HDEL', KEYS[1], 'mark', 'before', 'marked', 'bytes')  -- they are of the epoch before
  end
end
redis.pcall('EXPIRE', KEYS[1], ARGV[5])

local answer = {epoch, top, 0, ''}
local function read(of, offset)
  local history, most, from = ARGV[1] .. of .. ARGV[2], tonumber(ARGV[8]), '(' .. offset .. '-0'
  local count, bytes, step = 0, 0, 1
  while true do
    local entries = redis.call('XRANGE', history, from, '+', 'COUNT', step)
    for _, entry in ipairs(entries) do
      if bytes >= most then
        answer[3] = 1
        return
      end
      answer[#answer + 1] = entry[2][2]
      answer[4] = of .. ' ' .. string.match(entry[1], '^%d+')
      count, bytes = count + 1, bytes + #entry[2][2]
    end
    if #entries < step then
      return
    end
    -- No more is looked at than is likely to be given: one entry may be large.
    from, step = '(' .. entries[step][1], math.max(1, math.min(16, 2 * step, math.floor((most - bytes) * count / bytes)))
  end
end

if ARGV[6] ~= '' then
  read(ARGV[6], ARGV[7])
  if ARGV[6] ~= epoch then
    if #answer > 4 then
      answer[3] = 1
    else
      read(epoch, '0')
    end
  end
end
return answer
