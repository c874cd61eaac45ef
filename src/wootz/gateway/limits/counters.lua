-- The counters of all gateways on one Redis: reserve and settle, each one atomic step. `redis.py` calls it.
--
-- It begins with a line `local EPOCH = '…'`, the id of the running server. A server that was restarted knows neither that
-- script (so the caller notices) nor counts on periods from before (they are begun anew from the ledger).
--
-- KEYS[1]  what all keys begin with; its {tag} keeps them on one node of a cluster
-- ARGV     'reserve' id seconds force, then for each meter: kind name limit amount start end seed
--          'settle'  id ago, then for each meter: kind name used start
--          'read'    '', then for each meter: kind name start
--
-- PREFIX:c:NAME  a counter. window: second -> amount; period: epoch start seeded owner total held; open: count
-- PREFIX:r:ID    a reservation: what it holds and where, or 'done'
-- PREFIX:open    reservations by the time they expire; whoever comes next gives back what expired ones hold
--
-- Amounts are decimal strings: a Lua number is exact only up to 2^53, and picodollars are larger.

local prefix, action, id = KEYS[1], ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local this_second = math.ceil(now)
local WINDOW, DAY, REMEMBERED = 60, 86400, 600
local WRITTEN = 0.1 -- seconds, within which the row of a request that is over is in the ledger
local open = prefix .. ':open'

local function counter(name) return prefix .. ':c:' .. name end
local function reservation(id) return prefix .. ':r:' .. id end
local function digits(number) return string.format('%.0f', number) end
local function minus(amount) return amount == '0' and amount or '-' .. amount end

local function exceeds(a, b)
  if string.sub(a, 1, 1) == '-' then return false end
  if #a ~= #b then return #a > #b end
  return a > b
end

-- periods ---------------------------------------------------------------------------------------------------------

-- As `Period.is_of` in memory.py has it.
local function is_seeded(key, start)
  local state = redis.call('HMGET', key, 'epoch', 'start')
  if state[1] ~= EPOCH then return false end
  local stored = tonumber(state[2])
  return stored == start or (start < stored and stored <= now)
end

local function seed_period(key, meter)
  redis.call('HSET', key, 'epoch', EPOCH, 'start', meter.start, 'seeded', now, 'owner', id, 'total', meter.seed, 'held', '0')
  if meter.finish > 0 then redis.call('EXPIREAT', key, digits(meter.finish + DAY)) end
end

local function hold_period(key, meter, force)
  redis.call('HINCRBY', key, 'total', meter.amount)
  local total = redis.call('HGET', key, 'total')
  if not force and meter.amount ~= '0' and exceeds(total, meter.limit) then
    redis.call('HINCRBY', key, 'total', minus(meter.amount))
    local without_held = tonumber(total) - tonumber(redis.call('HGET', key, 'held'))
    if without_held <= tonumber(meter.limit) then return nil, 1 end
    return nil, meter.finish > 0 and math.max(meter.finish - now, 1) or math.huge
  end
  redis.call('HINCRBY', key, 'held', meter.amount)
  return redis.call('HGET', key, 'owner'), tonumber(meter.limit) - tonumber(total)
end

-- Replace what is held by what was used. Where the period was begun anew meanwhile, only add what was used, unless the
-- request had ended by then: the ledger knew it. `ago` is for how many seconds it has been over.
local function settle_period(key, held, used, start, ago)
  local state = redis.call('HMGET', key, 'epoch', 'owner', 'start', 'seeded')
  if held and state[1] == EPOCH and state[2] == held.place then
    redis.call('HINCRBY', key, 'held', minus(held.amount))
    redis.call('HINCRBY', key, 'total', minus(held.amount))
    redis.call('HINCRBY', key, 'total', used)
  elseif start and state[1] == EPOCH and tonumber(state[3]) == start and now - ago >= (tonumber(state[4]) or 0) - WRITTEN then
    redis.call('HINCRBY', key, 'total', used)
  end
end

-- windows ---------------------------------------------------------------------------------------------------------

local function read_window(key)
  local total, seconds, stored = 0, {}, redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local second, amount = tonumber(stored[i]), tonumber(stored[i + 1])
    if second + WINDOW <= now then
      redis.call('HDEL', key, stored[i])
    else
      if second > this_second then -- The clock went back: as if it had been used now.
        redis.call('HDEL', key, stored[i])
        redis.call('HINCRBY', key, digits(this_second), stored[i + 1])
        second = this_second
      end
      total = total + amount
      seconds[#seconds + 1] = {second, amount}
    end
  end
  return total, seconds
end

local function hold_window(key, meter, force)
  local total, seconds = read_window(key)
  local excess = total + tonumber(meter.amount) - tonumber(meter.limit)
  if not force and meter.amount ~= '0' and excess > 0 then
    table.sort(seconds, function(a, b) return a[1] < b[1] end)
    for _, used in ipairs(seconds) do
      excess = excess - used[2]
      if excess <= 0 then return nil, used[1] + WINDOW - now end
    end
  end
  redis.call('HINCRBY', key, digits(this_second), meter.amount)
  redis.call('EXPIRE', key, WINDOW + 2)
  return digits(this_second), -excess
end

-- concurrent requests ---------------------------------------------------------------------------------------------

local function hold_open(key, meter, force)
  local count = redis.call('HINCRBY', key, 'count', 1)
  if not force and count > tonumber(meter.limit) then
    redis.call('HINCRBY', key, 'count', -1)
    return nil, 1
  end
  return '', tonumber(meter.limit) - count
end

-- reservations ----------------------------------------------------------------------------------------------------

local hold = {window = hold_window, period = hold_period, open = hold_open}

-- Give back what one meter of a reservation holds. Rates keep it: the minute is over soon.
local function give_back(held, windows_too)
  local key = counter(held.name)
  if held.kind == 'open' then
    redis.call('HINCRBY', key, 'count', -1)
  elseif held.kind == 'period' then
    settle_period(key, held, '0')
  elseif windows_too then
    redis.call('HINCRBY', key, held.place, minus(held.amount))
  end
end

local function expire()
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', now, 'LIMIT', 0, 100)) do
    local stored = redis.call('GET', reservation(gone))
    if stored and stored ~= 'done' then
      for _, held in ipairs(cjson.decode(stored)) do give_back(held, false) end
      redis.call('DEL', reservation(gone))
    end
    redis.call('ZREM', open, gone)
  end
end

local function reserve(seconds, force)
  expire()
  local known = redis.call('GET', reservation(id))
  if known then -- It was reserved, and the answer got lost; or it is to last longer.
    if known ~= 'done' then redis.call('ZADD', open, now + seconds, id) end
    return {'ok'}
  end

  local meters, unseeded = {}, {'seed'}
  for i = 5, #ARGV, 7 do
    local meter = {
      kind = ARGV[i], name = ARGV[i + 1], limit = ARGV[i + 2], amount = ARGV[i + 3],
      start = tonumber(ARGV[i + 4]), finish = tonumber(ARGV[i + 5]), seed = ARGV[i + 6],
    }
    meters[#meters + 1] = meter
    local key = counter(meter.name)
    if meter.kind == 'period' and not is_seeded(key, meter.start) then
      if meter.seed ~= '' then seed_period(key, meter)
      elseif force then meter.lost = true
      else unseeded[#unseeded + 1] = digits(#meters) end
    end
  end
  if #unseeded > 1 then return unseeded end

  local taken, answer = {}, {'ok'}
  for number, meter in ipairs(meters) do
    local place, left = '', 0
    if not meter.lost then place, left = hold[meter.kind](counter(meter.name), meter, force) end
    if not place then
      for _, held in ipairs(taken) do give_back(held, true) end
      return {'refused', digits(number), tostring(left)}
    end
    taken[number] = {kind = meter.kind, name = meter.name, amount = meter.amount, place = place}
    answer[#answer + 1] = digits(left)
  end
  redis.call('SET', reservation(id), cjson.encode(taken), 'EX', DAY)
  redis.call('ZADD', open, now + seconds, id)
  return answer
end

local function settle()
  local stored = redis.call('GET', reservation(id))
  if stored == 'done' then return 'done' end
  local holds = stored and cjson.decode(stored) or {}
  local number, ago = 0, tonumber(ARGV[3])
  for i = 4, #ARGV, 4 do
    number = number + 1
    local kind, key, used, start, held = ARGV[i], counter(ARGV[i + 1]), ARGV[i + 2], tonumber(ARGV[i + 3]), holds[number]
    if kind == 'period' then
      settle_period(key, held, used, start, ago)
    elseif held and kind == 'open' then
      redis.call('HINCRBY', key, 'count', -1)
    elseif held and redis.call('HEXISTS', key, held.place) == 1 then
      redis.call('HINCRBY', key, held.place, minus(held.amount))
      redis.call('HINCRBY', key, held.place, used)
    end
  end
  redis.call('SET', reservation(id), 'done', 'EX', REMEMBERED)
  redis.call('ZREM', open, id)
  return 'ok'
end

-- Of each meter what is used and what is held, or two empty texts for a period that nobody has asked for yet.
local function read()
  local answer = {}
  for i = 3, #ARGV, 3 do
    local kind, key, used, held = ARGV[i], counter(ARGV[i + 1]), '', ''
    if kind == 'window' then
      used, held = digits((read_window(key))), '0'
    elseif kind == 'open' then
      used, held = '0', redis.call('HGET', key, 'count') or '0'
    elseif is_seeded(key, tonumber(ARGV[i + 2])) then
      local state = redis.call('HMGET', key, 'total', 'held')
      used, held = state[1], state[2]
    end
    answer[#answer + 1], answer[#answer + 2] = used, held
  end
  return answer
end

if action == 'read' then return read() end
if action == 'reserve' then return reserve(tonumber(ARGV[3]), ARGV[4] == '1') end
return settle()
