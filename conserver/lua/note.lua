-- Write down how far a claim has come, if it is still held.
--
-- KEYS[1] hash  seq -> record: what the worker holds
-- ARGV    seq, record
-- Reply   1 written, 0 no longer held

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
