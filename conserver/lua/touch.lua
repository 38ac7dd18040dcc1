-- Say which vCons are there, and keep them from expiring while they are worked on.
--
-- KEYS    vcon:<uuid> ...
-- Reply   for each key: 1 it is there, 0 it is not

local reply = {}
for i, key in ipairs(KEYS) do
  reply[i] = redis.call('EXISTS', key)
  if reply[i] == 1 then redis.call('PERSIST', key) end
end
return reply
