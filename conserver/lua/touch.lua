-- Say which vCons are there, and keep them from expiring while they are worked on.
--
-- KEYS    vcon:<uuid> ...
-- Reply   for each key: 0 it is not there, 1 it is, or "<ms>:<sha1>" it was to expire in so long, being that version

local reply = {}
for i, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left == -2 then reply[i] = 0
  elseif left == -1 then reply[i] = 1
  else
    local kind = redis.call('TYPE', key).ok
    local text = kind == 'string' and redis.call('GET', key) or kind == 'ReJSON-RL' and redis.call('JSON.GET', key)
    reply[i] = text and left .. ':' .. redis.sha1hex(text) or 1
    redis.call('PERSIST', key)
  end
end
return reply
