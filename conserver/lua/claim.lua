-- Take up to n entries and note who holds them, in one step.
--
-- KEYS[1] set    the workers that may claim from this list
-- KEYS[2] hash   seq -> record: what this worker holds
-- KEYS[3] string counter that names claims
-- KEYS[4] set    taken: seqs that somebody has taken from this worker
-- KEYS[5..]      lists to take from, in this order (returned, the list itself; or suspects)
-- ARGV    worker, n, after (the highest seq it knows), known (how many claims it holds), plain
--         (index in KEYS of the list that holds bare entries rather than records; 0 for none)
-- Reply   nil if the worker may not claim; else {error or "", seq, record, seq, record, ...}
--
-- A claim whose reply was lost on the wire is handed out again: the caller holds more than it knows.

if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return false end

local reply = {''}
local n, after, known, plain = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

-- With a claim less that it does not know of, the numbers could agree.
if redis.call('EXISTS', KEYS[4]) == 1 or redis.call('HLEN', KEYS[2]) ~= known then
  for _, seq in ipairs(redis.call('HKEYS', KEYS[2])) do
    if tonumber(seq) > after then
      reply[#reply + 1] = tonumber(seq)
      reply[#reply + 1] = redis.call('HGET', KEYS[2], seq)
      n = n - 1
    end
  end
end

for i = 5, #KEYS do
  if n <= 0 then break end
  local entries = redis.pcall('LRANGE', KEYS[i], 0, n - 1)
  if entries.err then
    reply[1] = entries.err
  elseif #entries > 0 then
    -- Written down first and removed last: a server that refuses a write (full, read-only, an ACL)
    -- refuses the first one, while nothing has been taken yet.
    local first = redis.call('INCRBY', KEYS[3], #entries) - #entries
    local fields = {}
    for k, entry in ipairs(entries) do
      if i == plain then entry = '1 0 0 0 0\n' .. entry end
      fields[2 * k - 1], fields[2 * k] = first + k, entry
      reply[#reply + 1] = first + k
      reply[#reply + 1] = entry
    end
    -- No more at once than the stack of a script takes.
    for k = 1, #fields, 1000 do redis.call('HSET', KEYS[2], unpack(fields, k, math.min(k + 999, #fields))) end
    local cut = redis.pcall('LTRIM', KEYS[i], #entries, -1)
    if cut.err then
      for k = 1, #entries do redis.call('HDEL', KEYS[2], first + k) end
      return redis.error_reply(cut.err)
    end
    n = n - #entries
  end
end
return reply
