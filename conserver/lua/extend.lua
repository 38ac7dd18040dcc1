-- Let a lease stand for longer.
--
-- KEYS[1] hash  what is leased (see leases.lua)
-- KEYS[2] zset  lease -> when it lapses
-- ARGV    lease, ms from now
-- Reply   1, or 0 if there is no such lease (any more) or nothing is left of it

local lease = lease_of(KEYS[1], ARGV[1])
if not lease or lease.left == 0 then return 0 end
begin_to_write(KEYS[1])
redis.call('ZADD', KEYS[2], 'XX', now_ms() + tonumber(ARGV[2]), ARGV[1])
return 1
