-- Change who is in a room, and tell those who watch it: whose worker is dead is gone; others come, go, or change nicks.
--
-- KEYS  1 the room's presence: a hash of version, and of each worker that has somebody there
--       2 the nicks in use there: a hash of folded nick to author
--       3 the room: a hash of epoch and top; its channel has the same name
-- ARGV  1 worker   2 what the sign of life of each worker starts with
--       3 what the key of whom a worker has there starts with, before worker:room: a hash of author to
--       "SINCE [FOLDED NICK]"   4 the room
--       5 seconds to keep all that   6 the most members of whom each one is told
--       7 seconds until a worker without a sign of life is dead   8 what is told of the dead, before worker
--       then changes, each of them what, author, number of further arguments, and these:
--         enter, stay: since, then nick and folded nick, as many as it may be known by (none: by none); who stays was
--         there before, as far as its worker knows: nothing is told, unless it was said to have left
--         nick: as many of both as it may be known by
--         leave: none
-- Gives {version, answer, …}: to enter, stay and nick "SINCE [FOLDED NICK]", or false where
-- all these nicks are in use by others, or who changes its nick is not there; to leave false.
-- Tells "*VERSION EPOCH TOP MEMBERS\n" and, where they are not too many, [[what, author, nick, nick before], …] in
-- msgpack: join, leave or nick, and the nicks as they read.

local events, workers, count = {}, {}, 0

local function key(worker)
  return ARGV[3] .. worker .. ':' .. ARGV[4]
end

local function nicks(entry)
  local folded, nick = string.match(entry, '^%S+ (%S+) (%S+)$')
  return folded, nick or ''
end

local function gone(author, entry)
  local folded, nick = nicks(entry)
  if folded and redis.call('HGET', KEYS[2], folded) == author then
    redis.call('HDEL', KEYS[2], folded)
  end
  events[#events + 1] = {'leave', author, nick, ''}
end

local function find(author)
  for _, worker in ipairs(workers) do
    local entry = redis.call('HGET', key(worker), author)
    if entry then
      return entry, worker
    end
  end
end

-- Gives folded nick and nick: the first from a place in ARGV on that nobody else has.
local function choose(author, from, to)
  for i = from, to, 2 do
    local owner = redis.call('HGET', KEYS[2], ARGV[i + 1])
    if not owner or owner == author or not find(owner) then
      return ARGV[i + 1], ARGV[i]
    end
  end
end

local function put(author, since, folded, nick)
  local entry = folded and since .. ' ' .. folded .. ' ' .. nick or since
  redis.call('HSET', key(ARGV[1]), author, entry)
  if folded then
    redis.call('HSET', KEYS[2], folded, author)
  end
  return entry
end

local function total()
  local members = 0
  for _, worker in ipairs(workers) do
    members = members + redis.call('HLEN', key(worker))
  end
  return members
end

local dead = {}
workers[1] = ARGV[1]
redis.call('SET', ARGV[2] .. ARGV[1], 1, 'EX', ARGV[7])
local buried = redis.call('EXISTS', ARGV[8] .. ARGV[1]) == 1
for _, worker in ipairs(redis.call('HKEYS', KEYS[1])) do
  if worker ~= 'version' and worker ~= ARGV[1] then
    workers[#workers + 1] = worker
    if redis.call('EXISTS', ARGV[2] .. worker) == 0 then
      dead[#dead + 1] = worker
    end
  end
end
local before = total()
for _, worker in ipairs(dead) do
  local entries = redis.call('HGETALL', key(worker))
  for i = 1, #entries, 2 do
    gone(entries[i], entries[i + 1])
  end
  redis.call('DEL', key(worker))
  redis.call('HDEL', KEYS[1], worker)
  redis.call('SET', ARGV[8] .. worker, 1, 'EX', ARGV[5])
end

local answers = {}
local at = 9
while ARGV[at] do
  local what, author, from = ARGV[at], ARGV[at + 1], at + 3
  local to = at + 2 + ARGV[at + 2]
  local entry, worker = find(author)
  local answer = false
  if (what == 'enter' or what == 'stay') and entry then
    -- It is back before it was missed, as who it was.
    if worker ~= ARGV[1] then
      redis.call('HDEL', key(worker), author)
      redis.call('HSET', key(ARGV[1]), author, entry)
    end
    answer = entry
  elseif what == 'enter' or what == 'stay' then
    local folded, nick = choose(author, from + 1, to)
    if folded or from == to then
      answer = put(author, ARGV[from], folded, nick)
      if what == 'enter' or buried then
        events[#events + 1] = {'join', author, nick or '', ''}
      end
    end
  elseif what == 'nick' and worker == ARGV[1] then
    local folded, nick = choose(author, from, to)
    if folded then
      local old, was = nicks(entry)
      if old and old ~= folded and redis.call('HGET', KEYS[2], old) == author then
        redis.call('HDEL', KEYS[2], old)
      end
      answer = put(author, string.match(entry, '^%S+'), folded, nick)
      if was ~= nick then
        events[#events + 1] = {'nick', author, nick, was}
      end
    end
  elseif what == 'leave' and worker == ARGV[1] then
    redis.call('HDEL', key(worker), author)
    gone(author, entry)
  end
  answers[#answers + 1] = answer
  at = to + 1
end

local mine = redis.call('HLEN', key(ARGV[1]))
local members, most = total(), tonumber(ARGV[6])
if members == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  return {'0', unpack(answers)}
end
if mine > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], 1)
  redis.call('EXPIRE', key(ARGV[1]), ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
-- Versions rise for ever, also where the one before was forgotten: they begin with the time, in milliseconds.
local now = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'version', string.format('%d%03d000', now[1], math.floor(now[2] / 1000)))
if #events > 0 and math.min(before, members) <= most then
  local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
  local order = redis.call('HMGET', KEYS[3], 'epoch', 'top')
  local told = string.format('*%.0f %s %s %d\n', version, order[1] or '-', order[2] or '0', members)
  if math.max(before, members) <= most then
    told = told .. cmsgpack.pack(events)
  end
  redis.call('PUBLISH', KEYS[3], told)
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return {redis.call('HGET', KEYS[1], 'version'), unpack(answers)}
