-- Give up membership of a list, unless something is held there: then recovery has to find it.
--
-- KEYS[1] set    the workers that may claim from this list
-- KEYS[2] hash   seq -> record: what the worker holds
-- KEYS[3] set    taken: seqs that somebody has taken from this worker
-- ARGV    worker
-- Reply   1 it has left, 0 it holds something or was no member

if redis.call('HLEN', KEYS[2]) > 0 then return 0 end
redis.call('DEL', KEYS[3])
return redis.call('SREM', KEYS[1], ARGV[1])
