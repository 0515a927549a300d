-- Take over the place of a client that comes back with its key, or begin one.
--
-- KEYS  1 the place: a hash of epoch, offset, author, session and worker of the connection that has it now, and
--         giving: the connection before it, while that has yet to say how far it came
-- ARGV  1 worker   2 session   3 seconds to keep it
--       4 what the channel of each worker starts with   5 what to tell the worker that has it, behind the session
--       6 whether it waits no more (1) or would (0)
--       7 how often clients may take it from each other at once   8 seconds until they may once more
-- Gives {epoch, offset, author, whether to wait for another connection (1) or not (0)}; epoch and offset may be empty.
-- Gives false to who had claimed it and waits no more, where yet another connection has come with that key.
-- Gives the seconds to wait where clients have taken it from each other too often (fought.lua).

local place = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'author', 'session', 'worker', 'giving', 'fights', 'fought')
local author, session, giving = place[3] or ARGV[2], place[4] or '', place[6] or ''
redis.call('HSET', KEYS[1], 'author', author)  -- first what changes nothing, for a broker without memory to refuse
if session ~= '' and session ~= ARGV[2] then
  if ARGV[6] == '1' then
    return false
  end
  if place[7] then
    local over = place[7] - (redis.call('TIME')[1] - place[8]) / ARGV[8] - ARGV[7] + 1
    if over > 0 then
      return math.ceil(over * ARGV[8])
    end
  end
  local heard = redis.call('PUBLISH', ARGV[4] .. place[5], 'take ' .. session .. ' ' .. ARGV[5])
  if giving == '' and heard > 0 then  -- else this one has not begun, and has nothing to give
    giving = session
  end
end
if session == '' or ARGV[6] == '1' then
  giving = ''
end
redis.call('HSET', KEYS[1], 'author', author, 'session', ARGV[2], 'worker', ARGV[1], 'giving', giving)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {place[1] or '', place[2] or '0', author, giving ~= '' and 1 or 0}
