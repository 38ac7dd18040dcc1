-- Lease entries from the head of a list to a reader, after putting back what has lapsed.
--
-- KEYS[1] list  the entries
-- KEYS[2] hash  what is leased (see leases.lua)
-- KEYS[3] zset  lease -> when it lapses
-- ARGV    lease, n, ms
-- Reply   {"again"} more has lapsed than one call puts back: nothing is leased yet;
--         else {"ok", when it lapses in ms, entry, ...}, without entries if there are none
--
-- A lease that stands already, since the reply was lost, is given again with what is left of it.

local _, more = put_back(KEYS[1], KEYS[2], KEYS[3])
if more then return {'again'} end

local function answer(lapses, entries)
  -- Not by unpack, whose stack is not that deep.
  local reply = {'ok', tonumber(lapses)}
  for k, entry in ipairs(entries) do reply[k + 2] = entry end
  return reply
end

local known = lease_of(KEYS[2], ARGV[1])
if known then
  local _, entries = left_of(KEYS[2], known)
  return answer(redis.call('ZSCORE', KEYS[3], ARGV[1]), entries)
end

local lapses = now_ms() + tonumber(ARGV[3])
local entries = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
if #entries == 0 then return answer(lapses, entries) end
-- Written down first and removed last: a server that refuses a write (full, read-only, an ACL) refuses the first one,
-- while nothing has been taken yet.
local first = redis.call('HINCRBY', KEYS[2], '', #entries) - #entries
local meta = as_text({first = first, n = #entries, left = #entries, token = '-', count = 0})
local fields, seqs = {'@' .. ARGV[1], meta}, {}
for k, entry in ipairs(entries) do
  seqs[k] = first + k
  fields[2 * k + 1], fields[2 * k + 2] = first + k, entry
end
for k = 1, #fields, 1000 do redis.call('HSET', KEYS[2], unpack(fields, k, math.min(k + 999, #fields))) end
local done = redis.pcall('ZADD', KEYS[3], lapses, ARGV[1])
if type(done) == 'number' then done = redis.pcall('LTRIM', KEYS[1], #entries, -1) end
if done.err then
  forget(KEYS[2], seqs)
  redis.call('HDEL', KEYS[2], '@' .. ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  return redis.error_reply(done.err)
end
return answer(lapses, entries)
