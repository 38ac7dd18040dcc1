-- Delete a vCon so that neither a late save nor a storage brings it back.
--
-- KEYS[1] vcon:<uuid>
-- KEYS[2] deleted mark
-- KEYS[3] hash   seq -> record: what the worker holds; only for a delete inside a chain
-- ARGV    seconds that the mark stays, seq: the claim that the writer works for, or ""
--         expected: sha1 of the only version that may be deleted, or ""
-- Reply   1 it was there, 0 it was not, -1 the claim is not held any more, -2 it is another version, or not there

if ARGV[2] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[2]) == 0 then return -1 end
if ARGV[3] ~= '' then
  local kind, current = redis.call('TYPE', KEYS[1]).ok, false
  if kind == 'string' then current = redis.call('GET', KEYS[1])
  elseif kind == 'ReJSON-RL' then current = redis.call('JSON.GET', KEYS[1]) end
  if not current or redis.sha1hex(current) ~= ARGV[3] then return -2 end
end
-- First, since a script that has written something may go on writing though the server is full.
local there = redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], '1', 'EX', ARGV[1])
return there
