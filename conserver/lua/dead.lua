-- What settle, recover, retry and drop share: the hash that says why an entry is dead. It is put before their text.
--
-- hash  entry (or "sha1:<hex>" of one over 200 bytes) -> JSON in under 500 bytes that begins with {"n":<how many
--       dead letters have this entry>, so that the last one out takes the reason along

local function dead_field(entry)
  if #entry > 200 then return 'sha1:' .. redis.sha1hex(entry) end
  return entry
end

local function dead_count(why)
  return why and tonumber(string.match(why, '^{"n":(%d+)')) or 0
end

local function note_dead(key, entry, why)
  local old = redis.pcall('HGET', key, dead_field(entry))
  if type(old) == 'table' and old.err then return old end
  local n = dead_count(old) + 1
  return redis.pcall('HSET', key, dead_field(entry), (string.gsub(why, '^{"n":%d+', '{"n":' .. n)))
end

local function forget_dead(key, entry)
  local field = dead_field(entry)
  local why = redis.call('HGET', key, field)
  local n = dead_count(why) - 1
  if n > 0 then
    redis.call('HSET', key, field, (string.gsub(why, '^{"n":%d+', '{"n":' .. n)))
  elseif why then
    redis.call('HDEL', key, field)
  end
end
