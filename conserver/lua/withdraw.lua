-- Take a claim from the worker that holds it: that worker can neither settle nor save it any more.
--
-- KEYS[1] hash   seq -> record: what the worker holds
-- KEYS[2] set    taken: the seqs that were taken from this worker
-- KEYS[3] list   returned
-- ARGV    seq, "return" (it is the next to be claimed) or "drop"
-- Reply   1 taken, 0 the worker does not hold it

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 0 end
-- A write that changes nothing: after it the server lets this script go on even when its memory is full.
redis.call('HDEL', KEYS[1], '')
redis.call('SADD', KEYS[2], ARGV[1])
if ARGV[2] == 'return' then
  local pushed = redis.pcall('LPUSH', KEYS[3], record)
  if type(pushed) == 'table' then
    redis.call('SREM', KEYS[2], ARGV[1])
    return redis.error_reply(pushed.err)
  end
end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
