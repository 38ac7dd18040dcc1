-- Let a vCon expire, if it still is the version that the storages hold. If it is not, it stays: a storage may have
-- been given the older version last.
--
-- KEYS[1] vcon:<uuid>
-- ARGV    sha1 of that version's text, or "*" for whatever is there; seconds
-- Reply   1 it expires, 0 it is another version or gone

local kind = redis.call('TYPE', KEYS[1]).ok
local current = false
if kind == 'string' then current = redis.call('GET', KEYS[1])
elseif kind == 'ReJSON-RL' then current = redis.call('JSON.GET', KEYS[1]) end
if not current then return 0 end
if ARGV[1] ~= '*' and redis.sha1hex(current) ~= ARGV[1] then
  redis.call('PERSIST', KEYS[1])
  return 0
end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
