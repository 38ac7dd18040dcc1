-- Name the version of a vCon that is stored.
--
-- KEYS[1] vcon:<uuid>
-- Reply   sha1 of its text, or nil if there is none

local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' then return redis.sha1hex(redis.call('GET', KEYS[1])) end
if kind == 'ReJSON-RL' then return redis.sha1hex(redis.call('JSON.GET', KEYS[1])) end
return false
