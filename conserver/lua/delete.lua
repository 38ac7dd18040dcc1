-- Delete a vCon so that neither a late save nor a storage brings it back.
--
-- KEYS[1] vcon:<uuid>
-- KEYS[2] deleted mark
-- ARGV    seconds that the mark stays
-- Reply   1 it was there, 0 it was not

redis.call('SET', KEYS[2], '1', 'EX', ARGV[1])
return redis.call('DEL', KEYS[1])
