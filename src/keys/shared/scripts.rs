//! What Redis does in one step: to look whether something fits everywhere and to take it, and to settle it. Time is
//! Redis's own, so that gateways whose clocks differ count alike. The arithmetic is that of the counts in process.
//!
//! A rate is four fields of a hash (level, logarithm of what stayed, how often it was empty, when), a sum of money two (which
//! day or month, how much), requests at once a sorted set of ids by when they are forgotten. Every key expires.
//!
//! A reservation has a key of its own, which says what it found when it was taken, and afterwards that it is over. So what
//! was settled once is settled, however often that is sent; and who does not know whether it was made can have it undone:
//! if it comes later than that, it takes nothing. 120 s later nothing comes any more: Linux gives up after some 100 s to
//! deliver what somebody left in a connection that he closed (`tcp_orphan_retries`).

/// KEYS: the reservation's, then one for each meter. ARGV: an id, then for each meter: kind, field, limit, amount, index.
/// Answers whether all fit, then of each meter its level and whether it fits; nothing if the reservation was undone.
pub(super) const RESERVE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
if redis.call('GET', KEYS[1]) then return {} end
local states, fits = {}, '1'
for i = 2, #KEYS do
  local key, a = KEYS[i], i * 5 - 8
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
    fit = amount == 0 or level + amount <= limit + 0.000001
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
local out, marks = { fits }, {}
for i = 2, #KEYS do
  local key, a = KEYS[i], i * 5 - 8
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
  marks[#marks + 1] = string.format('%.17g %.17g', stayed, mark)
  out[#out + 1] = string.format('%.17g', level)
  out[#out + 1] = fit and '1' or '0'
end
if fits == '1' then redis.call('SET', KEYS[1], table.concat(marks, ' '), 'EX', 3600) end
return out
";

/// KEYS: as above. ARGV: an id, whether it is to be settled or undone, then for each meter: kind, field, limit, amount, index,
/// what was used of it. A reservation that Redis has forgotten is settled nevertheless: it was open for an hour, or Redis
/// has lost all.
pub(super) const SETTLE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held, marks = redis.call('GET', KEYS[1]), {}
if held == 'over' then return 0 end
redis.call('SET', KEYS[1], 'over', 'EX', 120)
if not held and ARGV[2] == 'undo' then return 0 end
for number in string.gmatch(held or '', '%S+') do marks[#marks + 1] = tonumber(number) end
for i = 2, #KEYS do
  local key, a = KEYS[i], i * 6 - 9
  local kind, field = ARGV[a], ARGV[a + 1]
  local limit, amount, used = tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 5])
  local before, taken = marks[i * 2 - 3], marks[i * 2 - 2]
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
    taken = taken or tonumber(ARGV[a + 4])
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
