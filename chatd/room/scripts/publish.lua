-- Give a batch of messages the next offsets of its room and publish it, at once for all who watch.
--
-- KEYS  1 the room: a hash of epoch, run and top (the newest offset)
--       2 this publisher's newest batch in the room: "SEQUENCE EPOCH FIRST"
-- ARGV  1 channel   2 publisher   3 sequence   4 number of messages   5 the messages, not looked at
--       6 run_id of this broker   7 an epoch, should a new one be needed
--       8 seconds to remember a silent room   9 seconds to remember a batch
-- Gives {epoch, offset of the first message}.
--
-- A batch whose answer got lost comes again with its sequence: it keeps its offsets and is published once
-- more, for those whose own link broke with the publisher's; who has it already knows it by its sequence.

local room = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'top')
local epoch, top, first = room[1], tonumber(room[3] or '0'), nil

-- Another run of the broker may have lost offsets that were given before: they start anew.
if not epoch or room[2] ~= ARGV[6] then
  epoch, top = ARGV[7], 0
end

local newest = redis.call('GET', KEYS[2])
if newest then
  local sequence, its_epoch, its_first = string.match(newest, '^(%d+) (%S+) (%d+)$')
  if sequence == ARGV[3] and its_epoch == epoch then
    first = its_first
  end
end

local last = nil
if not first then
  first = string.format('%.0f', top + 1)
  last = string.format('%.0f', top + ARGV[4])
end

-- First of all, for it may be forbidden: then nothing has been given away.
redis.call('PUBLISH', ARGV[1], epoch .. ' ' .. first .. ' ' .. ARGV[2] .. ' ' .. ARGV[3] .. '\n' .. ARGV[5])
if last then
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', ARGV[6], 'top', last)
  redis.call('SET', KEYS[2], ARGV[3] .. ' ' .. epoch .. ' ' .. first, 'EX', ARGV[9])
end
redis.call('EXPIRE', KEYS[1], ARGV[8])
return {epoch, first}
