-- Save a vCon if nobody else has written in between.
--
-- KEYS[1] vcon:<uuid>     string with the JSON text, or a value of a JSON module
-- KEYS[2] deleted mark    string with an expiry: this vCon was deleted
-- KEYS[3] lock            string: the token of the one writer that may save for a short while
-- KEYS[4] hash            seq -> record: what the worker holds; only for a save inside a chain
-- ARGV    expected: sha1 of the text that the writer read, "" if there was none, "*" to replace whatever is there
--         text: the JSON text to store
--         token: the writer's lock token, or ""
--         format: "string" or "json"
--         revive: "1" to write in spite of a deleted mark and take it away
--         seq: the claim that the writer works for, or ""
--
-- Reply   {"gone"} the version that the writer read has expired: a storage may hold a newer one,
--         {"ok"} or, in format "json", {"ok", the text as it is stored}; {"lost"} the claim is not held any more, {"deleted"}, {"locked"},
--         {"conflict", text} somebody else wrote this, or {"type", what the key holds}

local key, expected, text = KEYS[1], ARGV[1], ARGV[2]

if ARGV[6] ~= '' and redis.call('HEXISTS', KEYS[4], ARGV[6]) == 0 then return {'lost'} end
local lock = redis.call('GET', KEYS[3])
if lock and lock ~= ARGV[3] then return {'locked'} end
if ARGV[5] == '1' then
  -- Only if it is there: a script that has written something may go on writing though the server is full.
  if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('DEL', KEYS[2]) end
elseif redis.call('EXISTS', KEYS[2]) == 1 then
  return {'deleted'}
end

local kind = redis.call('TYPE', key).ok
local current = false
if kind == 'string' then current = redis.call('GET', key)
elseif kind == 'ReJSON-RL' then current = redis.call('JSON.GET', key)
elseif kind ~= 'none' then return {'type', kind} end

if expected ~= '*' and current ~= text then
  if current then
    if expected == '' or redis.sha1hex(current) ~= expected then return {'conflict', current} end
  elseif expected ~= '' then
    return {'gone'}
  end
end
-- SET drops an expiry: the copy that a storage holds is not this one any more.
if ARGV[4] == 'json' then
  if kind == 'string' then redis.call('DEL', key) end
  redis.call('JSON.SET', key, '$', text)
  redis.call('PERSIST', key)
  return {'ok', redis.call('JSON.GET', key)}
end
redis.call('SET', key, text)
return {'ok'}
