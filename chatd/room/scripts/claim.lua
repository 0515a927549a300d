-- Take over the place of a client that comes back with its key, or begin one.
--
-- KEYS  1 the place: a hash of epoch, offset, author, session and worker of the connection that has it now, and
--         taking: whether that still waits to hear from the one before
-- ARGV  1 worker   2 session   3 seconds to keep it
--       4 what the channel of each worker starts with   5 what to tell the worker that has it, beside who asks
-- Gives {epoch, offset, author, number of workers that were asked to give it up}; epoch and offset may be empty.

local place = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'author', 'session', 'worker')
local author, session = place[3] or ARGV[2], place[4] or ''
local asked = 0
if session ~= '' and session ~= ARGV[2] then
  asked = redis.call('PUBLISH', ARGV[4] .. place[5], table.concat({'take', session, ARGV[1], ARGV[2], ARGV[5]}, ' '))
end
redis.call('HSET', KEYS[1], 'author', author, 'session', ARGV[2], 'worker', ARGV[1], 'taking', asked)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {place[1] or '', place[2] or '0', author, asked}
