-- Read a room's history backwards: the newest batches up to an offset.
--
-- KEYS  1 the history of the room in one epoch
-- ARGV  1 the newest offset that is wanted   2 the offset before the oldest one that is wanted
--       3 about how many bytes to read
-- Gives {1 if there is more, else 0; offset of the newest message of that, batch, batch, …}, the newest batch first, as
-- they were published. The first one may end, and the last one begin, with messages that were not asked for.

local answer, count, bytes, most = {0, ''}, 0, 0, tonumber(ARGV[3])
local after = '(' .. ARGV[2] .. '-0'

local function add(entry)
  answer[#answer + 1] = entry[2][2]
  count, bytes = count + 1, bytes + #entry[2][2]
end

-- An entry's id is the offset of its last message, so the newest message wanted may be in the first entry behind.
local edge = redis.call('XRANGE', KEYS[1], ARGV[1] .. '-0', '+', 'COUNT', 1)[1]
local first = edge and tonumber((string.match(edge[2][2], '^%S+ (%d+)')))  -- nil where the entry can't be read
if edge and (edge[1] == ARGV[1] .. '-0' or (first and first <= tonumber(ARGV[1]))) then
  add(edge)
end

local to, step = '(' .. ARGV[1] .. '-0', 1
while true do
  local entries = redis.call('XREVRANGE', KEYS[1], to, after, 'COUNT', step)
  for _, entry in ipairs(entries) do
    if bytes >= most then
      answer[1], answer[2] = 1, string.match(entry[1], '^%d+')
      return answer
    end
    add(entry)
  end
  if #entries < step then
    return answer
  end
  -- No more is looked at than is likely to be given: one entry may be large.
  to, step = '(' .. entries[step][1], math.max(1, math.min(16, 2 * step, math.floor((most - bytes) * count / bytes)))
end
