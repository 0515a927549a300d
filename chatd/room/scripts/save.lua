-- Save the places of clients, each for as long as its connection, or the one that has taken it over, still has it.
--
-- KEYS  the places: hashes of epoch, offset, author, session, worker and taking
-- ARGV  1 seconds to keep them   2 what the channel of each worker starts with
--       then for each: session and worker that have it, epoch and offset (epoch may be empty: as they are), author,
--       and left (it has it no more), taken (its worker waits to hear that) or nothing

for i, key in ipairs(KEYS) do
  local at = 6 * i - 3
  local session, worker, epoch, offset, author, outcome = unpack(ARGV, at, at + 5)
  local owner = redis.call('HGET', key, 'session') or ''
  if owner == '' or owner == session then
    -- Who hears that it was taken too late has gone on from what was kept, and is ahead.
    if epoch ~= '' and (outcome ~= 'taken' or redis.call('HGET', key, 'taking') ~= '0') then
      redis.call('HSET', key, 'epoch', epoch, 'offset', offset, 'author', author)
    end
    if outcome == 'left' then
      redis.call('HSET', key, 'session', '')
    elseif outcome == '' then
      redis.call('HSET', key, 'session', session, 'worker', worker)
    end
    redis.call('EXPIRE', key, ARGV[1])
  end
  if outcome == 'taken' then
    redis.call('PUBLISH', ARGV[2] .. worker, 'taken ' .. session)
  end
end
