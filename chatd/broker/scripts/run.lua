-- Name the run of this broker: the stretch of time in which it loses nothing.
--
-- KEYS  1 where it stands
-- ARGV  1 the run id of this process   2 random characters
-- Gives it. A replica that becomes the master has another run id than stands there. So has a former master that is
-- made the master again without a restart: its own id does not tell that it has lost what it had not passed on.

local run = redis.call('GET', KEYS[1])
if not run or string.sub(run, 1, #ARGV[1]) ~= ARGV[1] then
  run = ARGV[1] .. '.' .. ARGV[2]
  redis.call('SET', KEYS[1], run)
end
return run
