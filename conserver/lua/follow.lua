-- End one entry that a follower has taken: it is pushed, becomes a dead letter, or is dropped.
--
-- KEYS[1] list  what was taken and is not done
-- KEYS[2] list  what is done and has to be acknowledged
-- KEYS[3] list  the target: our list, or the dead letters of the follower; KEYS[1] again to drop the entry
-- KEYS[4] hash  entry -> why it is dead (see dead.lua)
-- ARGV    entry, as it was taken
--         what is pushed to the target
--         why it is dead, or ""
--         "1" if the other side waits for an acknowledgement, else "0"
-- Reply   1, or 0 if the entry is not there: it has been ended before
--
-- The target comes first: if it refuses, nothing has happened.

if not redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
if KEYS[3] ~= KEYS[1] then redis.call('RPUSH', KEYS[3], ARGV[2]) end
if ARGV[3] ~= '' then note_dead(KEYS[4], ARGV[2], ARGV[3]) end
if ARGV[4] == '1' then redis.call('RPUSH', KEYS[2], ARGV[1]) end
redis.call('LREM', KEYS[1], 1, ARGV[1])
return 1
