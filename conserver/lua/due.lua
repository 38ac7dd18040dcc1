-- Put retries whose time has come where workers find them.
--
-- KEYS[1] zset  delayed: "<seq>:<record>" by the time it is due, in ms of the server's clock
-- KEYS[2] list  returned
-- ARGV    most records at once
-- Reply   how many were moved

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
for _, member in ipairs(due) do
  -- Removed first, so that a full server lets the push through.
  redis.call('ZREM', KEYS[1], member)
  local done = redis.pcall('RPUSH', KEYS[2], string.sub(member, string.find(member, ':', 1, true) + 1))
  if type(done) == 'table' and done.err then
    redis.call('ZADD', KEYS[1], now, member)
    return redis.error_reply(done.err)
  end
end
return #due
