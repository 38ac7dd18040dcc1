-- What lease, unlease, extend and lapse share: how the leases of a list are written down. It is put before their text.
--
-- hash  seq -> entry: what is leased; "" -> the highest seq; "@<lease>" -> "<first> <n> <left> <token> <count>": it took
--       the seqs first + 1 to first + n, so many are left, and its last unlease had this token and ended so many
-- zset  lease -> when it lapses, in ms of the server's clock

--- Return the server's clock in ms.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

--- Write something that changes nothing: after it the server lets a script go on even when its memory is full.
local function begin_to_write(hash) redis.call('HDEL', hash, '-') end

local function lease_of(hash, id)
  local first, n, left, token, count =
    string.match(redis.call('HGET', hash, '@' .. id) or '', '^(%d+) (%d+) (%d+) (%S*) (%d+)$')
  if not first then return nil end
  return {
    id = id, first = tonumber(first), n = tonumber(n), left = tonumber(left), token = token, count = tonumber(count)
  }
end

local function as_text(lease)
  return string.format('%d %d %d %s %d', lease.first, lease.n, lease.left, lease.token, lease.count)
end

--- Return the seqs and the entries that are left of a lease, oldest first.
local function left_of(hash, lease)
  local seqs, entries = {}, {}
  for i = 1, lease.n, 1000 do
    local fields = {}
    for k = i, math.min(i + 999, lease.n) do fields[#fields + 1] = lease.first + k end
    for k, entry in ipairs(redis.call('HMGET', hash, unpack(fields))) do
      if entry then seqs[#seqs + 1], entries[#entries + 1] = fields[k], entry end
    end
  end
  return seqs, entries
end

--- Put entries before the head of the list, the oldest first.
local function push_front(list, entries)
  for i = #entries, 1, -500 do
    local batch = {}
    for k = i, math.max(i - 499, 1), -1 do batch[#batch + 1] = entries[k] end
    redis.call('LPUSH', list, unpack(batch))
  end
end

local function forget(hash, seqs)
  for i = 1, #seqs, 1000 do redis.call('HDEL', hash, unpack(seqs, i, math.min(i + 999, #seqs))) end
end

--- Put back what has lapsed, some 10,000 entries at once; return how many, and whether there may be more.
local function put_back(list, hash, zset)
  -- The last come first, so that the oldest are at the head in the end.
  local ids = redis.call('ZREVRANGEBYSCORE', zset, now_ms(), '-inf', 'LIMIT', 0, 100)
  if #ids == 0 then return 0, false end
  begin_to_write(hash)
  local leases = {}
  for _, id in ipairs(ids) do leases[#leases + 1] = lease_of(hash, id) or {id = id, first = 0, n = 0, left = 0} end
  table.sort(leases, function(a, b) return a.first > b.first end)
  local moved = 0
  for _, lease in ipairs(leases) do
    if moved > 0 and moved + lease.left > 10000 then return moved, true end
    local seqs, entries = left_of(hash, lease)
    push_front(list, entries)
    forget(hash, seqs)
    redis.call('HDEL', hash, '@' .. lease.id)
    redis.call('ZREM', zset, lease.id)
    moved = moved + #entries
  end
  if redis.call('ZCARD', zset) == 0 then redis.call('DEL', hash) end
  return moved, #ids == 100
end

