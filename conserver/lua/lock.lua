-- Take a lock that nobody has, on a full server as well: what is done under it may be what makes room there.
--
-- KEYS[1] string  the token of its holder, with an expiry
-- ARGV    token, milliseconds
-- Reply   1 it is held from now on, 0 somebody has it

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
-- A write that changes nothing: after it the server lets this script set the key even when its memory is full.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
