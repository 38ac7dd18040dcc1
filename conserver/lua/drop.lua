-- Forget dead letters.
--
-- KEYS[1] list  dead letters
-- KEYS[2] hash  entry -> why it is dead
-- ARGV    entry, or nothing and then the number of the oldest to drop: {"entry", value} or {"oldest", n}
-- Reply   how many were dropped

local entries
if ARGV[1] == 'entry' then
  if redis.call('LREM', KEYS[1], 1, ARGV[2]) == 0 then return 0 end
  entries = {ARGV[2]}
else
  entries = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
  redis.call('LTRIM', KEYS[1], #entries, -1)
end
for _, entry in ipairs(entries) do forget_dead(KEYS[2], entry) end
return #entries
