-- Change who is in a room, and tell those who watch it: whose worker is dead is gone; others come, go, or change nicks.
--
-- KEYS  1 the room's presence: a hash of version, and of each worker that has somebody there
--       2 the nicks in use there: a hash of key to holder, and of each owner to "KEYS NICK" of the nick that it has;
--       the holder of a nick is the owner of its member, or the author of a member without one
--       3 the room: a hash of epoch and top; its channel has the same name
--       4 the members with an owner: a sorted set of "OWNER AUTHOR", all with the score 0
-- ARGV  1 worker   2 what the sign of life of each worker starts with
--       3 what the key of whom a worker has there starts with, before worker:room: a hash of author to an entry
--       4 the room   5 seconds to keep all that   6 the most members of whom each one is told
--       7 seconds until a worker without a sign of life is dead   8 what is told of the dead, before worker
--       then changes, each of them what, author, number of further arguments, and these:
--         enter, stay, linger: since, owner, origin, keys of the nick that it wants, then nick and its keys, as many as it may
--         be known by (none: by none); who stays was there before, as far as its worker knows: nothing is told, unless
--         it was said to have left. Who lingers does the same, but not if it is on another worker by now: it stays there
--         free: the same, of somebody who is not there and does not come: the first of these nicks that it may speak under
--         nick, again: the same; since is not read. Who asks again keeps its nick where the other is still in use
--         leave: none
-- An entry is "SINCE KEYS NICK OWNER ORIGIN", the last of them left out where they are empty. KEYS are those under
-- which the nick is in use, a comma between them. OWNER is whom the member's token names, percent-encoded: it has a
-- %00, as no key and no author has. All members of one owner may have the same nick. ORIGIN is the same for members
-- that come from one place, and may be one client.
-- Gives {version, answer, …}. An answer is {entry, ghost}, or one of these words:
--   taken      others have all these nicks; of whom asks again or is there already never
--   lost       who changes its nick is on no worker: the broker has lost it
--   elsewhere  who changes its nick is on another worker, where the same author came since
--   left       to leave, whether or not it was there
-- Ghost is the author that has the nick which the member wants, and comes from the same place; empty: none.
-- Tells "*VERSION EPOCH TOP MEMBERS\n" and, where they are not too many, [[what, author, nick, nick before, subject], …]
-- in msgpack: join, leave or nick, and the nicks as they read.

local events, workers, count = {}, {}, 0

local function key(worker)
  return ARGV[3] .. worker .. ':' .. ARGV[4]
end

-- Gives since, keys, nick, owner and origin.
local function read(entry)
  return string.match(entry, '^(%S+) ?(%S*) ?(%S*) ?(%S*) ?(%S*)$')
end

local function tell(what, author, nick, was, owner)
  local subject = string.gsub(string.match(owner, '^sub%%00(.*)$') or '', '%%(%x%x)', function(hex)
    return string.char(tonumber(hex, 16))
  end)
  events[#events + 1] = {what, author, nick, was, subject}
end

local function find(author)
  for _, worker in ipairs(workers) do
    local entry = redis.call('HGET', key(worker), author)
    if entry then
      return entry, worker
    end
  end
end

-- Says whether a holder of a nick is there. The authors of an owner that are gone unnoticed are forgotten.
local function is_here(holder)
  if not string.find(holder, '%00', 1, true) then
    return find(holder)
  end
  while true do
    local first = redis.call('ZRANGEBYLEX', KEYS[4], '[' .. holder .. ' ', '(' .. holder .. '!', 'LIMIT', 0, 1)[1]
    if not first or find(string.sub(first, #holder + 2)) then
      return first
    end
    redis.call('ZREM', KEYS[4], first)
  end
end

local function belong(author, owner)
  if owner ~= '' then
    redis.call('ZADD', KEYS[4], 0, owner .. ' ' .. author)
  end
end

-- Lets the holder of an entry have its nick; where it has it already nothing changes.
local function hold(author, entry)
  local _, keys, nick, owner = read(entry)
  local holder = owner ~= '' and owner or author
  for each in string.gmatch(keys, '[^,]+') do
    redis.call('HSET', KEYS[2], each, holder)
  end
  belong(author, owner)
  if owner ~= '' and keys ~= '' then
    redis.call('HSET', KEYS[2], owner, keys .. ' ' .. nick)
  end
end

-- Takes it from who had that entry, unless another member of its owner is there.
local function release(author, entry)
  local _, keys, _, owner = read(entry)
  if owner ~= '' then
    redis.call('ZREM', KEYS[4], owner .. ' ' .. author)
    if is_here(owner) then
      return
    end
    redis.call('HDEL', KEYS[2], owner)
  end
  local holder = owner ~= '' and owner or author
  for each in string.gmatch(keys, '[^,]+') do
    if redis.call('HGET', KEYS[2], each) == holder then
      redis.call('HDEL', KEYS[2], each)
    end
  end
end

local function gone(author, entry)
  release(author, entry)
  local _, _, nick, owner = read(entry)
  tell('leave', author, nick, '', owner)
end

-- Says whether a holder other than this one has a nick, and is there.
local function is_taken(keys, own)
  for each in string.gmatch(keys, '[^,]+') do
    local holder = redis.call('HGET', KEYS[2], each)
    if holder and holder ~= own and is_here(holder) then
      return true
    end
  end
end

-- Gives keys and nick: that of its owner, if one of whose members is there, has one; else the first from a place in
-- ARGV on that nobody else has.
local function choose(author, owner, from, to)
  local holder = owner ~= '' and owner or author
  if owner ~= '' and from <= to and is_here(owner) then
    local keys, nick = string.match(redis.call('HGET', KEYS[2], owner) or '', '^(%S+) (%S+)$')
    if keys and not is_taken(keys, holder) then
      return keys, nick
    end
  end
  for i = from, to, 2 do
    if not is_taken(ARGV[i + 1], holder) then
      return ARGV[i + 1], ARGV[i]
    end
  end
end

local function ghost(author, entry, wanted)
  if wanted == '' then
    return ''
  end
  local _, _, _, _, origin = read(entry)
  for each in string.gmatch(origin ~= '' and wanted or '', '[^,]+') do
    local holder = redis.call('HGET', KEYS[2], each)
    local other = holder and holder ~= author and find(holder)
    if other and select(5, read(other)) == origin then
      return holder
    end
  end
  return ''
end

local function entry_of(since, keys, nick, owner, origin)
  if not keys and owner == '' and origin == '' then
    return since  -- nearly always: a pipe without a token
  end
  local parts = table.concat({since, keys or '', nick or '', owner, origin}, ' ')
  return (string.gsub(parts, ' +$', ''))
end

local function put(author, since, keys, nick, owner, origin)
  local entry = entry_of(since, keys, nick, owner, origin)
  redis.call('HSET', key(ARGV[1]), author, entry)
  if entry ~= since then
    hold(author, entry)
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
  local answer = 'taken'
  local has = nil
  local since, owner, origin, wanted = ARGV[from], ARGV[from + 1], ARGV[from + 2], ARGV[from + 3]
  local comes = what == 'enter' or what == 'stay' or what == 'linger'
  if comes and entry then
    -- It is back before it was missed, as who it was.
    if worker ~= ARGV[1] and what ~= 'linger' then
      redis.call('HDEL', key(worker), author)
      redis.call('HSET', key(ARGV[1]), author, entry)
    end
    belong(author, (select(4, read(entry))))
    has = entry
  elseif comes then
    local keys, nick = choose(author, owner, from + 4, to)
    if keys or from + 3 == to then
      has = put(author, since, keys, nick, owner, origin)
      if what == 'enter' or buried then
        tell('join', author, nick or '', '', owner)
      end
    end
  elseif what == 'free' then
    local keys, nick = choose(author, owner, from + 4, to)
    if keys then
      has = entry_of(since, keys, nick, owner, origin)
    end
  elseif what == 'leave' then
    answer = 'left'
    if worker == ARGV[1] then
      redis.call('HDEL', key(worker), author)
      gone(author, entry)
    end
  elseif worker ~= ARGV[1] then
    answer = entry and 'elsewhere' or 'lost'
  else
    local keys, nick = choose(author, owner, from + 4, to)
    if keys then
      local came, _, was = read(entry)
      release(author, entry)
      has = put(author, came, keys, nick, owner, origin)
      if was ~= nick then
        tell('nick', author, nick, was, owner)
      end
    elseif what == 'again' then
      has = entry
    end
  end
  answers[#answers + 1] = has and {has, ghost(author, has, wanted)} or answer
  at = to + 1
end

local mine = redis.call('HLEN', key(ARGV[1]))
local members, most = total(), tonumber(ARGV[6])
if members == 0 then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[4])
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
redis.call('EXPIRE', KEYS[4], ARGV[5])
return {redis.call('HGET', KEYS[1], 'version'), unpack(answers)}
