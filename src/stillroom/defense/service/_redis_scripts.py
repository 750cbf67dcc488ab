"""What Redis does in one step, so that replicas cannot come between each other: a few scripts in its Lua."""

from __future__ import annotations

__all__ = ["ADD_KEY", "ADMIT", "APPEND", "FORGET", "RECORD", "SET_STATUS"]

# KEYS of all scripts about an account: its row, window and bucket, then the sorted sets by score, queries, last_seen.
# ARGV[1] is its name, ARGV[2] the time; numbers stay the strings they came as, Lua's own would lose digits.
_SEEN = """
local row, window, bucket, by_score, by_queries, by_seen = unpack(KEYS)
local name, now = ARGV[1], ARGV[2]

local function begin()
    if redis.call('HSETNX', row, 'first_seen', now) == 1 then
        redis.call('HSET', row, 'last_seen', now)
        redis.call('ZADD', by_score, '-inf', name)
        redis.call('ZADD', by_queries, 0, name)
        redis.call('ZADD', by_seen, now, name)
    end
end

local function seen()
    begin()
    if tonumber(now) < tonumber(redis.call('HGET', row, 'first_seen')) then
        redis.call('HSET', row, 'first_seen', now)
    end
    if tonumber(now) > tonumber(redis.call('HGET', row, 'last_seen')) then
        redis.call('HSET', row, 'last_seen', now)
        redis.call('ZADD', by_seen, now, name)
    end
end

local function forget()
    redis.call('DEL', window)
    if redis.call('EXISTS', row) == 1 then
        redis.call('HDEL', row, 'score', 'highest', 'total')
        redis.call('ZADD', by_score, '-inf', name)
    end
end
"""

# ARGV: name, time, W, queries, then the last W of them.
APPEND = (
    _SEEN
    + """
begin()
local before = redis.call('LRANGE', window, 0, -1)
for i = 5, #ARGV do redis.call('RPUSH', window, ARGV[i]) end
redis.call('LTRIM', window, -ARGV[3], -1)
return {redis.call('HINCRBY', row, 'total', ARGV[4]), before}
"""
)

# ARGV: name, time, images, per second, burst. The arithmetic is that of _buckets.spend.
ADMIT = (
    _SEEN
    + """
local images, rate, burst, clock = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(now)
local status = redis.call('HGET', row, 'status') or 'watched'
if status == 'banned' then return {status, '0'} end
local lack = math.min(math.max((tonumber(redis.call('GET', bucket)) or 0) - clock, 0), burst / rate)
local wait = lack + (images - burst) / rate
if images > burst then return {status, 'inf'} end
if wait > 1e-9 then return {status, string.format('%.17g', wait)} end
local full_at = clock + lack + images / rate
redis.call('SET', bucket, string.format('%.17g', full_at), 'PX', math.ceil((full_at - clock) * 1000) + 1000)
seen()
redis.call('ZADD', by_queries, redis.call('HINCRBY', row, 'queries', images), name)
return {status, '0'}
"""
)

# ARGV: name, time, score or nothing, poisoned.
RECORD = (
    _SEEN
    + """
seen()
redis.call('HINCRBY', row, 'poisoned', ARGV[4])
if ARGV[3] ~= '' then
    local highest = tonumber(redis.call('HGET', row, 'highest'))
    if not highest or tonumber(ARGV[3]) > highest then redis.call('HSET', row, 'highest', ARGV[3]) end
    redis.call('HSET', row, 'score', ARGV[3])
    redis.call('ZADD', by_score, ARGV[3], name)
end
"""
)

FORGET = _SEEN + "forget()"

# KEYS: the six, then the sets of trusted and of banned accounts. ARGV: name, time, status.
SET_STATUS = (
    _SEEN
    + """
begin()
redis.call('HSET', row, 'status', ARGV[3])
redis.call(ARGV[3] == 'trusted' and 'SADD' or 'SREM', KEYS[7], name)
redis.call(ARGV[3] == 'banned' and 'SADD' or 'SREM', KEYS[8], name)
if ARGV[3] == 'watched' then forget() end
"""
)

# KEYS: the key, its account's keys. ARGV: what is stored, its name.
ADD_KEY = """
if redis.call('SETNX', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('SADD', KEYS[2], ARGV[2])
return 1
"""
