-- Give up membership of a list, unless something is held there: then recovery has to find it.
--
-- KEYS[1] set    the workers that may claim from this list
-- KEYS[2] hash   seq -> record: what the worker holds
-- ARGV    worker
-- Reply   1 it has left, 0 it holds something or was no member

if redis.call('HLEN', KEYS[2]) > 0 then return 0 end
return redis.call('SREM', KEYS[1], ARGV[1])
