-- Put entries whose lease has lapsed back to the head of their list.
--
-- KEYS[1] list  the entries
-- KEYS[2] hash  what is leased (see leases.lua)
-- KEYS[3] zset  lease -> when it lapses
-- Reply   {how many, 1 if there may be more, else 0}

local moved, more = put_back(KEYS[1], KEYS[2], KEYS[3])
return {moved, more and 1 or 0}
