-- Give some rows of the sorted set of all vCons: newest first, those of one score by their bytes, the last first.
--
-- KEYS[1] the sorted set
-- ARGV[1] score and ARGV[2] member of the row that they come behind, which need not be there any more; no score: none
-- ARGV[3] the score that none is above
-- ARGV[4] how many to leave out; ARGV[5] how many to give
-- Reply   of each row its member, its score, and "1" if the member has a prefix and the same without it is there, too

local function is_behind(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = one:byte(i), other:byte(i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

local rank = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[3], '+inf')
local score, member = ARGV[1], ARGV[2]
if score ~= '' then
  -- Rows of this score stand from low to high: find the first that is behind the member.
  local low = redis.call('ZCOUNT', KEYS[1], '(' .. score, '+inf')
  local high = low + redis.call('ZCOUNT', KEYS[1], score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_behind(redis.call('ZREVRANGE', KEYS[1], middle, middle)[1], member) then
      high = middle
    else
      low = middle + 1
    end
  end
  rank = math.max(rank, low)
end
rank = rank + tonumber(ARGV[4])

local rows = {}
local found = redis.call('ZREVRANGE', KEYS[1], rank, rank + tonumber(ARGV[5]) - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  local twin = ''
  if found[i]:sub(1, 5) == 'vcon:' and redis.call('ZSCORE', KEYS[1], found[i]:sub(6)) then twin = '1' end
  rows[#rows + 1] = found[i]
  rows[#rows + 1] = found[i + 1]
  rows[#rows + 1] = twin
end
return rows
