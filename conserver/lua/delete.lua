-- Delete a vCon so that neither a late save nor a storage brings it back.
--
-- KEYS[1] vcon:<uuid>
-- KEYS[2] deleted mark
-- KEYS[3] hash   seq -> record: what the worker holds; only for a delete inside a chain
-- ARGV    seconds that the mark stays, seq: the claim that the writer works for, or ""
-- Reply   1 it was there, 0 it was not, -1 the claim is not held any more

if ARGV[2] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[2]) == 0 then return -1 end
redis.call('SET', KEYS[2], '1', 'EX', ARGV[1])
return redis.call('DEL', KEYS[1])
