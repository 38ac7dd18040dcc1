-- Say which vCons are there, and keep them from expiring while they are worked on.
--
-- KEYS    vcon:<uuid> ...
-- ARGV    for each key the most bytes that its text may have to be part of the reply
-- Reply   for each key: 0 it is not there; 1 it is; or {ms, sha1, text}: it was to expire in so long, being that version
--         (-1 and '' if it was not to expire), and its text, or nil if that was not asked for

local reply = {}
for i, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  local version, text = '', false
  if left ~= -2 and tonumber(ARGV[i]) > 0 then
    local size = redis.pcall('STRLEN', key)
    if type(size) == 'number' and size <= tonumber(ARGV[i]) then text = redis.call('GET', key) end
  end
  if left >= 0 then
    local kind = redis.call('TYPE', key).ok
    local now = kind == 'string' and redis.call('GET', key) or kind == 'ReJSON-RL' and redis.call('JSON.GET', key)
    if now then version = redis.sha1hex(now) end
    redis.call('PERSIST', key)
  end
  if left == -2 then reply[i] = 0
  elseif text or version ~= '' then reply[i] = {left, version, text}
  else reply[i] = 1 end
end
return reply
