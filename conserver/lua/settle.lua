-- End claims: each is removed and what follows from it is pushed, in one step; or nothing of it happens.
--
-- KEYS[1] hash   seq -> record: what this worker holds
-- KEYS[2..]      targets of the operations
-- ARGV    for each claim: seq, number of operations, then the operations:
--           R key value            RPUSH
--           D key entry json       note why an entry is dead (see dead.lua)
--           Z key delay-ms member  ZADD, due after the delay by the server's clock
--         (key is an index in KEYS)
-- Reply   for each claim: 1 settled, 0 no longer held, or the error of a target that refused

local kinds = {R = 'list', D = 'hash', Z = 'zset'}
local widths = {R = 3, D = 4, Z = 4}
local checked = {}
local now

local function wrong_type(key, kind)
  local is = checked[key]
  if not is then
    is = redis.call('TYPE', key).ok
    if is ~= 'none' then checked[key] = is end
  end
  if is ~= 'none' and is ~= kind then
    return "key '" .. key .. "' holds a " .. is .. ', not a ' .. kind
  end
end

local function apply(op, key, a, b)
  if op == 'R' then return redis.pcall('RPUSH', key, a) end
  if op == 'D' then return note_dead(key, a, b) end
  if not now then
    local t = redis.call('TIME')
    now = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return redis.pcall('ZADD', key, now + tonumber(a), b)
end

local function undo(op, key, a, b)
  if op == 'R' then redis.call('RPOP', key)
  elseif op == 'D' then forget_dead(key, a)
  else redis.call('ZREM', key, b) end
end

local reply = {}
local at = 1
while at <= #ARGV do
  local seq, count = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local ops, refused = {}, nil
  for i = 1, count do
    local op = ARGV[at]
    ops[i] = {op, KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2], ARGV[at + 3]}
    refused = refused or wrong_type(ops[i][2], kinds[op])
    at = at + widths[op]
  end
  local record = redis.call('HGET', KEYS[1], seq)
  if not record then
    reply[#reply + 1] = 0
  elseif refused then
    reply[#reply + 1] = refused
  else
    -- Removal comes first: after it the server lets this script push even when its memory is full.
    redis.call('HDEL', KEYS[1], seq)
    local result = 1
    for i, op in ipairs(ops) do
      local done = apply(op[1], op[2], op[3], op[4])
      if type(done) == 'table' and done.err then
        for k = i - 1, 1, -1 do undo(ops[k][1], ops[k][2], ops[k][3], ops[k][4]) end
        redis.call('HSET', KEYS[1], seq, record)
        result = done.err
        break
      end
    end
    reply[#reply + 1] = result
  end
end
return reply
