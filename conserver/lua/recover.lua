-- Return what a worker held, and see to it that it can claim no more.
--
-- KEYS[1] set    the workers that may claim from this list
-- KEYS[2] hash   seq -> record: what the worker held
-- KEYS[3] list   returned: records that regular workers take before the list
-- KEYS[4] list   suspects: records that only quarantine takes
-- KEYS[5] list   dead letters: the entries as they were pushed
-- KEYS[6] hash   entry -> why it is dead
-- KEYS[7] set    taken: seqs that somebody has taken from this worker
-- ARGV    worker, mode, most (how often a record may come back in this mode), limit reason,
--         then pairs: seq, reason of a claim that is known to be the culprit
--         mode "returned":   nobody's fault; counted in returns
--         mode "suspects":   the worker crashed; not counted, quarantine will tell
--         mode "quarantine": it crashed alone with this record; counted in crashes
-- Reply   {returned, suspects, dead}

for i, kind in ipairs({'list', 'list', 'list', 'hash'}) do
  local is = redis.call('TYPE', KEYS[i + 2]).ok
  if is ~= 'none' and is ~= kind then
    return redis.error_reply("ERR key '" .. KEYS[i + 2] .. "' holds a " .. is .. ', not a ' .. kind)
  end
end
-- A write that changes nothing: after it the server lets this script push even when its memory is full.
redis.call('HDEL', KEYS[2], '')
local mode, most, limit = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local culprits = {}
for i = 5, #ARGV, 2 do culprits[ARGV[i]] = ARGV[i + 1] end

local held = redis.call('HGETALL', KEYS[2])
local seqs, records = {}, {}
for i = 1, #held, 2 do
  seqs[#seqs + 1] = tonumber(held[i])
  records[tonumber(held[i])] = held[i + 1]
end
table.sort(seqs)

local counts = {0, 0, 0}

local function bury(entry, reason)
  redis.call('RPUSH', KEYS[5], entry)
  note_dead(KEYS[6], entry, reason)
  counts[3] = counts[3] + 1
end

for _, seq in ipairs(seqs) do
  local record = records[seq]
  local head, crashes, returns, attempts, size = string.match(record, '^(1 (%d+) (%d+) (%d+) (%d+)\n)')
  local target, slot = KEYS[3], 1
  if head then
    local rest = string.sub(record, #head + 1)
    local entry = string.sub(rest, tonumber(size) + 1)
    local reason = culprits[tostring(seq)]
    if mode == 'returned' then
      returns = returns + 1
      if returns > most then reason = reason or limit end
    elseif mode == 'quarantine' then
      crashes = crashes + 1
      target, slot = KEYS[4], 2
      if crashes >= most then reason = reason or limit end
    else
      target, slot = KEYS[4], 2
    end
    if reason then
      bury(entry, reason)
      target = nil
    else
      record = '1 ' .. crashes .. ' ' .. returns .. ' ' .. attempts .. ' ' .. size .. '\n' .. rest
    end
  end
  -- A record of a version that we do not know goes back as it is.
  if target then
    redis.call('RPUSH', target, record)
    counts[slot] = counts[slot] + 1
  end
end
redis.call('DEL', KEYS[2], KEYS[7])
-- Last: while something is held, its holder is a member, or nobody would find it.
redis.call('SREM', KEYS[1], ARGV[1])
return counts
