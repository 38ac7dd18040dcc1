-- Queue dead letters again, oldest first.
--
-- KEYS[1] list  dead letters
-- KEYS[2] hash  entry -> why it is dead
-- KEYS[3] list  the ingress list
-- KEYS[4] list  returned
-- ARGV    how many, "1" to forget how far they had come, else "0"
-- Reply   how many were moved

for _, key in ipairs({KEYS[3], KEYS[4]}) do
  local is = redis.call('TYPE', key).ok
  if is ~= 'none' and is ~= 'list' then
    return redis.error_reply("ERR key '" .. key .. "' holds a " .. is .. ', not a list')
  end
end
local entries = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
if #entries == 0 then return 0 end
local reasons = redis.call('EXISTS', KEYS[2]) == 1
local plain, records = {}, {}
for _, entry in ipairs(entries) do
  local note = ''
  if reasons and ARGV[2] == '0' then
    local ok, why = pcall(cjson.decode, redis.call('HGET', KEYS[2], dead_field(entry)) or '')
    if ok and type(why.note) == 'table' then note = cjson.encode(why.note) end
  end
  if note == '' then plain[#plain + 1] = entry
  else records[#records + 1] = '1 0 0 0 ' .. #note .. '\n' .. note .. entry end
end
local function push(key, values)
  for i = 1, #values, 500 do
    redis.call('RPUSH', key, unpack(values, i, math.min(i + 499, #values)))
  end
end
push(KEYS[3], plain)
push(KEYS[4], records)
-- Cut last: a server that refuses the push (full, read-only, an ACL) has lost nothing.
redis.call('LTRIM', KEYS[1], #entries, -1)
if reasons then
  for _, entry in ipairs(entries) do forget_dead(KEYS[2], entry) end
end
return #entries
