-- Forget dead letters.
--
-- KEYS[1] list  dead letters
-- KEYS[2] hash  entry -> why it is dead
-- KEYS[3] string a lock, if the entry is to be dropped only while that is held
-- ARGV    one entry, or the number of the oldest to drop: {"entry", value}, {"entry", value, token of the lock} or
--         {"oldest", n}
-- Reply   how many were dropped, -1 the lock is not held any more

local entries
if KEYS[3] and redis.call('GET', KEYS[3]) ~= ARGV[3] then return -1 end
if ARGV[1] == 'entry' then
  if redis.call('LREM', KEYS[1], 1, ARGV[2]) == 0 then return 0 end
  entries = {ARGV[2]}
else
  entries = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
  redis.call('LTRIM', KEYS[1], #entries, -1)
end
for _, entry in ipairs(entries) do forget_dead(KEYS[2], entry) end
return #entries
