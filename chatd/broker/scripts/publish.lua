-- Give a batch of messages the next offsets of its room, keep it as history and publish it, at once for all who watch.
--
-- KEYS  1 the room: a hash of epoch, run, top (the newest offset), and the marks; its channel has the same name
--       2 this publisher's newest batch in the room: "SEQUENCE EPOCH FIRST"
-- ARGV  1 the history's key, but for the epoch that comes between   2 and the room, the rest of it
--       3 publisher   4 sequence   5 number of messages   6 the messages, not looked at
--       7 run of this broker   8 an epoch, should a new one be needed
--       9 seconds to remember a silent room   10 seconds to remember a batch
--       11 messages to keep (0: none)   12 seconds to keep them
--       13 and 14 seconds and bytes of the newest that are kept however many messages they are
--       15 …  for each message that its author gave an id: its number in the batch, and the key of that id; no key twice
-- Gives {epoch, offset of the first message}; or {false, {number, position}, …} and nothing is published, where
-- authors have published some of these messages before.
--
-- A batch whose answer got lost comes again with its sequence: it keeps its offsets and is published once
-- more, for those whose own link broke with the publisher's; who has it already knows it by its offsets.

local room = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'top', 'mark', 'before', 'marked', 'bytes')
for i = 3, 7 do
  room[i] = tonumber(room[i] or '0')
end
local epoch, top, mark, before, marked, bytes = room[1], unpack(room, 3, 7)
local first = nil

-- Another run of the broker may have lost offsets that were given before: they start anew.
if not epoch or room[2] ~= ARGV[7] then
  epoch, top, mark, before, marked, bytes = ARGV[8], 0, 0, 0, 0, 0
end

local newest = redis.call('GET', KEYS[2])
if newest then
  local sequence, its_epoch, its_first = string.match(newest, '^(%d+) (%S+) (%d+)$')
  if sequence == ARGV[4] and its_epoch == epoch then
    first = its_first
    redis.call('EXPIRE', KEYS[2], ARGV[10])  -- it may come again for as long as it is refused
  end
end

local last = nil
if not first then
  local duplicates = {false}
  for i = 15, #ARGV, 2 do
    local position = redis.call('GET', ARGV[i + 1])
    if position then
      duplicates[#duplicates + 1] = {ARGV[i], position}
    end
  end
  if #duplicates > 1 then
    return duplicates
  end
  first = string.format('%.0f', top + 1)
  last = string.format('%.0f', top + ARGV[5])
end

-- Nothing is given away before all of it may be: what the broker may refuse comes first, and changes nothing that
-- counts. Only the last of it is seen.
redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', ARGV[7], 'top', string.format('%.0f', top))
if epoch ~= room[1] then
  redis.call('HSET', KEYS[1], 'mark', 0, 'before', 0, 'marked', 0, 'bytes', 0)
end
redis.call('EXPIRE', KEYS[1], ARGV[9])
local batch = epoch .. ' ' .. first .. ' ' .. ARGV[3] .. ' ' .. ARGV[4] .. '\n' .. ARGV[6]
if last then
  local now = tonumber(redis.call('TIME')[1])
  redis.call('SET', KEYS[2], ARGV[4] .. ' ' .. epoch .. ' ' .. first, 'EX', ARGV[10])
  if ARGV[11] ~= '0' then
    -- What was said just now is kept for those who look for it within seconds, however much it is: marks tell where
    -- that began.
    local history = ARGV[1] .. epoch .. ARGV[2]
    bytes = bytes + #batch
    if now - marked >= tonumber(ARGV[13]) or bytes >= tonumber(ARGV[14]) then
      mark, before, marked, bytes = top, mark, now, 0
    end
    local oldest = string.format('%.0f', math.max(0, math.min(before, last - ARGV[11]) + 1))
    local kept = redis.pcall('XADD', history, 'MINID', '~', oldest, last .. '-0', 'b', batch)
    if type(kept) == 'table' and kept.err then
      redis.call('SET', KEYS[2], '0 - 0', 'EX', ARGV[10])  -- it has not been published
      return kept
    end
    redis.call('EXPIRE', history, ARGV[12])
  end
  redis.call('HSET', KEYS[1], 'top', last, 'mark', string.format('%.0f', mark), 'before', string.format('%.0f', before),
    'marked', string.format('%.0f', marked), 'bytes', string.format('%.0f', bytes))
  for i = 15, #ARGV, 2 do
    redis.call('SET', ARGV[i + 1], epoch .. ' ' .. string.format('%.0f', top + ARGV[i]), 'EX', ARGV[10])
  end
end
redis.call('PUBLISH', KEYS[1], batch)
return {epoch, first}
