-- Push what a request asks for and note that it is done, in one step; or nothing of it, if it was done before.
--
-- KEYS[1]    string  what is known of the request: the mark of a run of it, or its answer
-- KEYS[2..]  lists to push to
-- ARGV    mark of the run that asks ("" for a part of a request, which has none), answer, seconds that it is known,
--         then the entries, each of which goes to each list
-- Reply   1 done, 0 this part was done before; an error that begins with TAKEN if this run has lost its mark
--
-- A run whose mark has lapsed pushes nothing: another one may have begun.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  if ARGV[1] == '' then return 0 end
  return redis.error_reply('TAKEN this run of the request has lost its mark')
end
for i = 2, #KEYS do
  local is = redis.call('TYPE', KEYS[i]).ok
  if is ~= 'none' and is ~= 'list' then
    return redis.error_reply("ERR key '" .. KEYS[i] .. "' holds a " .. is .. ', not a list')
  end
end
for i = 2, #KEYS do
  -- No more at once than the stack of a script takes.
  for k = 4, #ARGV, 1000 do redis.call('RPUSH', KEYS[i], unpack(ARGV, k, math.min(k + 999, #ARGV))) end
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
