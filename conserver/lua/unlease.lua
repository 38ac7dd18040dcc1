-- End the lease of entries: they are acknowledged, or go back to the head of the list in their old order.
--
-- KEYS[1] list  the entries
-- KEYS[2] hash  what is leased (see leases.lua)
-- KEYS[3] zset  lease -> when it lapses
-- ARGV    lease, token of this call, "acknowledge" or "give back", "all" or "these" and then the entries
-- Reply   how many, or -1 if there is no such lease (any more)
--
-- A call that is repeated with its token does nothing and replies the same. A lease of which nothing is left is known
-- for another minute, so that who repeats himself is not told that his entries may have gone to others.

local lease = lease_of(KEYS[2], ARGV[1])
if not lease then return -1 end
if lease.token == ARGV[2] then return lease.count end

local seqs, entries = left_of(KEYS[2], lease)
if ARGV[4] == 'these' then
  local asked = {}
  for i = 5, #ARGV do asked[ARGV[i]] = (asked[ARGV[i]] or 0) + 1 end
  local all, found = entries, {}
  entries = {}
  for k, entry in ipairs(all) do
    if (asked[entry] or 0) > 0 then
      asked[entry] = asked[entry] - 1
      found[#found + 1], entries[#entries + 1] = seqs[k], entry
    end
  end
  seqs = found
end
begin_to_write(KEYS[2])
if ARGV[3] == 'give back' then push_front(KEYS[1], entries) end
forget(KEYS[2], seqs)
lease.left, lease.token, lease.count = lease.left - #seqs, ARGV[2], #seqs
redis.call('HSET', KEYS[2], '@' .. lease.id, as_text(lease))
if lease.left == 0 then redis.call('ZADD', KEYS[3], 'XX', 'LT', now_ms() + 60000, lease.id) end
return #seqs
