//! What Redis does in one step: to look whether something fits everywhere and to take it, and to settle it. Time is
//! Redis's own, so that gateways whose clocks differ count alike. The arithmetic is that of the counts in process.
//!
//! A rate is four fields of a hash (level, logarithm of what stayed, how often it was empty, when), a sum of money two (which
//! day or month, how much), requests at once a sorted set of ids by when they are forgotten. Every key expires.

/// ARGV: an id, then for each key: kind, field, limit, amount, index. Answers whether all fit, then four numbers for each.
pub(super) const RESERVE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local states, fits = {}, '1'
for i, key in ipairs(KEYS) do
  local a = i * 5 - 3
  local kind, field = ARGV[a], ARGV[a + 1]
  local limit, amount, index = tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local level, stayed, mark, fit = 0, 0, 0, true
  if kind == 'r' then
    local v = redis.call('HMGET', key, field .. 'l', field .. 's', field .. 'e', field .. 't')
    level, stayed = tonumber(v[1] or '0'), tonumber(v[2] or '0')
    mark = tonumber(v[3] or math.floor(now))
    local left = level - limit * math.max(now - tonumber(v[4] or now), 0) / 60
    if left > 0 then
      stayed, level = stayed + math.log(left / level), left
    elseif level > 0 then
      level, stayed, mark = 0, 0, mark + 1
    end
    fit = level + amount <= limit + 0.000001
  elseif kind == 'w' then
    local v = redis.call('HMGET', key, field .. 'i', field .. 'a')
    mark, level = tonumber(v[1] or '0'), tonumber(v[2] or '0')
    if index > mark then mark, level = index, 0 end
    fit = level < limit and level + amount <= limit
  else
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    level = redis.call('ZCARD', key)
    fit = level < limit
  end
  if not fit then fits = '0' end
  states[i] = { level, stayed, mark, fit }
end
local out = { fits }
for i, key in ipairs(KEYS) do
  local a = i * 5 - 3
  local kind, field, amount = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 3])
  local level, stayed, mark, fit = unpack(states[i])
  if fits == '1' then
    if kind == 'r' then
      level = level + amount
      redis.call('HSET', key, field .. 'l', string.format('%.17g', level), field .. 's', string.format('%.17g', stayed),
        field .. 'e', string.format('%.17g', mark), field .. 't', string.format('%.17g', now))
      redis.call('EXPIRE', key, 7200)
    elseif kind == 'w' then
      level = level + amount
      redis.call('HSET', key, field .. 'i', string.format('%.17g', mark), field .. 'a', string.format('%.17g', level))
      redis.call('EXPIRE', key, 2764800)
    else
      level = level + 1
      redis.call('ZADD', key, now + 3600, ARGV[1])
      redis.call('EXPIRE', key, 3660)
    end
  end
  for _, number in ipairs({ level, stayed, mark }) do out[#out + 1] = string.format('%.17g', number) end
  out[#out + 1] = fit and '1' or '0'
end
return out
";

/// ARGV: an id, then for each key: kind, field, limit, amount, what was used of it, and what it was when it was taken: what
/// had stayed, and the mark.
pub(super) const SETTLE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
for i, key in ipairs(KEYS) do
  local a = i * 7 - 5
  local kind, field = ARGV[a], ARGV[a + 1]
  local limit, amount, used = tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local before, taken = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6])
  if kind == 'r' then
    local v = redis.call('HMGET', key, field .. 'l', field .. 's', field .. 'e', field .. 't')
    local level, stayed = tonumber(v[1] or '0'), tonumber(v[2] or '0')
    local mark = tonumber(v[3] or math.floor(now))
    local left = level - limit * math.max(now - tonumber(v[4] or now), 0) / 60
    if left > 0 then
      stayed, level = stayed + math.log(left / level), left
    elseif level > 0 then
      level, stayed, mark = 0, 0, mark + 1
    end
    local unused = amount - used
    if unused <= 0 then
      level = level - unused
    elseif mark == taken then
      level = math.max(0, level - math.min(unused, amount * math.exp(stayed - before)))
    end
    redis.call('HSET', key, field .. 'l', string.format('%.17g', level), field .. 's', string.format('%.17g', stayed),
      field .. 'e', string.format('%.17g', mark), field .. 't', string.format('%.17g', now))
    redis.call('EXPIRE', key, 7200)
  elseif kind == 'w' then
    local v = redis.call('HMGET', key, field .. 'i', field .. 'a')
    local index, spent = tonumber(v[1] or '0'), tonumber(v[2] or '0')
    if index == taken then spent = math.max(0, spent - amount) end
    if index < taken then index, spent = taken, 0 end
    redis.call('HSET', key, field .. 'i', string.format('%.17g', index), field .. 'a', string.format('%.17g', spent + used))
    redis.call('EXPIRE', key, 2764800)
  else
    redis.call('ZREM', key, ARGV[1])
  end
end
return 1
";
