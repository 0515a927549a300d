-- Save the places of clients, each for as long as its connection, or the one that has taken it over, still has it.
--
-- KEYS  the places: hashes of epoch, offset, author, session, worker and giving; and last: who has left it
-- ARGV  1 seconds to keep them   2 what the channel of each worker starts with
--       then for each: session and worker that have it, or had it, epoch and offset (epoch may be empty: as they are),
--       author, and left (it has it no more), given (it was told to give it up) or nothing
-- Gives the numbers, 1, 2, …, of those that another connection has.

local others = {}
for i, key in ipairs(KEYS) do
  local at = 6 * i - 3
  local session, worker, epoch, offset, author, outcome = unpack(ARGV, at, at + 5)
  local place = redis.call('HMGET', key, 'session', 'worker', 'giving', 'last')
  local owner, giving, last = place[1] or '', place[3] or '', place[4] or ''
  local has = owner == session or (owner == '' and (last == '' or last == session))
  local given = outcome == 'given' and giving == session  -- else nobody waits for it: who came is ahead of it
  if given or (outcome ~= 'given' and has) then
    if epoch ~= '' then
      redis.call('HSET', key, 'epoch', epoch, 'offset', offset, 'author', author)
    end
    if given then
      redis.call('HSET', key, 'giving', '')
      redis.call('PUBLISH', ARGV[2] .. place[2], 'given ' .. owner)
    elseif outcome == 'left' then
      redis.call('HSET', key, 'session', '', 'last', session)
    else
      redis.call('HSET', key, 'session', session, 'worker', worker, 'giving', '')
    end
    redis.call('EXPIRE', key, ARGV[1])
  elseif outcome == '' then
    others[#others + 1] = i
  end
end
return others
