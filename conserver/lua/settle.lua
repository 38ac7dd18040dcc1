-- End claims: each is removed and what follows from it is pushed, in one step; or nothing of it happens.
--
-- KEYS[1] hash   seq -> record: what this worker holds
-- KEYS[2] set    the workers that may claim from this list
-- KEYS[3] set    taken: seqs that somebody has taken from this worker (see withdraw.lua)
-- KEYS[4..]      targets of the operations
-- ARGV    worker, then for each claim: seq, number of operations, then the operations:
--           R key value            RPUSH
--           D key entry json       note why an entry is dead (see dead.lua)
--           Z key delay-ms member  ZADD, due after the delay by the server's clock
--         (key is an index in KEYS)
-- Reply   for each claim: 1 settled, 0 it was taken away, or the error of a target that refused
--
-- Recovery takes away the record and the membership in one step. So what a member does not hold any more, and nobody
-- has taken from it, it has settled before, and the answer was lost.

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
local at = 2
local member, dirty
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
  if redis.call('HEXISTS', KEYS[1], seq) == 0 then
    member = member or redis.call('SISMEMBER', KEYS[2], ARGV[1])
    reply[#reply + 1] = member == 1 and redis.call('SISMEMBER', KEYS[3], seq) == 0 and 1 or 0
  elseif refused then
    reply[#reply + 1] = refused
  else
    -- A write that changes nothing: after it the server lets this script push even when its memory is full. The
    -- record goes last, so that whatever is refused on the way (an ACL) leaves it where it was.
    dirty = dirty or redis.call('HDEL', KEYS[1], '')
    local result, done = 1, 0
    for i, op in ipairs(ops) do
      local answer = apply(op[1], op[2], op[3], op[4])
      if type(answer) == 'table' and answer.err then
        result = answer.err
        break
      end
      done = i
    end
    if result == 1 then
      local answer = redis.pcall('HDEL', KEYS[1], seq)
      if type(answer) == 'table' then result = answer.err end
    end
    if result ~= 1 then
      for k = done, 1, -1 do undo(ops[k][1], ops[k][2], ops[k][3], ops[k][4]) end
    end
    reply[#reply + 1] = result
  end
end
return reply
