"""What runs inside Redis, in Lua: steps that must be one, or that need the server's clock.

Layout, with P = "{prefix}:" (one hash tag, so that all of it may live on one slot of a cluster):

    P queues           hash    queue → lease in milliseconds
    P q<level>:<queue> stream  messages; fields b = body, n = deliveries that count from before a release
    P levels:<queue>   set     levels above 0 that were ever used
    P due:<queue>      zset    delayed messages by due time; member = level:n:serial:body
    P dead:<queue>     stream  rejected messages; fields b = body, r = reason
    P held:<queue>     zset    level:id → until when, for leases extended beyond the queue's own
    P wait:<queue>     zset    consumers that may be blocked on the queue, by the time to forget them
    P wake:<consumer>  stream  an entry here ends the blocked read of that consumer
    P serial           string  counter that tells equal delayed messages apart
    P in:<peer>        stream  mailbox; field name = kind, value = body
    P peers, P info    zset, hash   presence: peer → time it ends, peer → what it says of itself

The lease of a delivery is the idle time of its entry in the group's pending list. A delivery is known by consumer and
delivery count: every claim counts up, so what an old holder does to an entry that was given to another is seen and
left undone.

Each script takes KEYS[1] = P and ARGV[1] = its arguments as msgpack; bytes come after it as ARGV[2…], because the
msgpack of Redis knows no binary type.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any

from msgspec import msgpack

from qnb.brokers.redis.link import Command

GROUP = "qnb"
SCRIPTS: dict[bytes, str] = {}
MAILBOX_NOTES = 2_000_000  # a million outcomes in flight, each in a note of its own, fit twice
_MAX_IDLE_LOOK = 20_000  # milliseconds a consumer may go without looking at its queues
_PENDING_LOOK = 200  # pending entries looked at for the next lease to end

_PRELUDE = """
local P = KEYS[1]
local args = cmsgpack.unpack(ARGV[1])
local call = redis.call
local function now()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function stream(queue, level) return P..'q'..level..':'..queue end
"""

MINE = """
local function mine(key, id, count)
  local found = redis.pcall('XPENDING', key, 'qnb', id, id, 1, args.me)
  return found[1] and found[1][4] == count
end
"""

_PUT = """
local function notify(queue)
  for _, name in ipairs(call('ZRANGEBYSCORE', P..'wait:'..queue, now(), '+inf')) do
    call('XADD', P..'wake:'..name, 'NOMKSTREAM', 'MAXLEN', '~', 16, '*', 'w', '1')
  end
end
local function put(queue, level, body, base)
  if base > 0 then
    call('XADD', stream(queue, level), '*', 'b', body, 'n', base)
  else
    call('XADD', stream(queue, level), '*', 'b', body)
  end
  if level > 0 and call('SADD', P..'levels:'..queue, level) == 1 then notify(queue) end
end
local function later(queue, level, body, base, delay)
  local key, at = P..'due:'..queue, now() + delay
  local head = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  call('ZADD', key, at, level..':'..base..':'..call('INCR', P..'serial')..':'..body)
  if not head[2] or at < tonumber(head[2]) then notify(queue) end
end
"""


def new_script(*parts: str) -> bytes:
    """Register a script by its digest."""
    text = _PRELUDE + "".join(parts)
    sha = sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
    SCRIPTS[sha] = text
    return sha


def script(sha: bytes, base: str, arguments: dict[str, Any], *blobs: bytes) -> Command:
    """The command that runs a script; `base` is "{prefix}:". The arguments hold no bytes: those are blobs."""
    return ("EVALSHA", sha, 1, base, msgpack.encode(arguments), *blobs)


# queue, level, delay (ms); blob: the body. For messages with a delay or a level above 0.
PUBLISH = new_script(
    _PUT,
    """
if args.delay > 0 then later(args.queue, args.level, ARGV[2], 0, args.delay)
else put(args.queue, args.level, ARGV[2], 0) end
return 1
""",
)

# me, queue, lease (ms, for a queue not declared yet), force (the lease replaces the queue's), limit, woken, known
# (after a broken connection: each level:id this consumer has; what else it was given got lost on the way).
# Everything a consumer has to see to now and then: moves what is due, takes over what has outlived its lease.
# pcall where a server out of memory refuses: consumers must go on, it is they who make room. It refuses only until the
# script's first write (PEXPIRE below, which needs no memory), so that groups can be made even then.
# Returns lease, ms until there is something to see to again, levels, [[level, id, count, base, body], …], and whether
# there is a stream to wake it by.
LOOK = new_script(
    MINE,
    _PUT,
    f"""
local queue, me, t, taken = args.queue, args.me, now(), {{}}
local lease = tonumber(call('HGET', P..'queues', queue))
if not lease or args.force and lease ~= args.lease then
  redis.pcall('HSET', P..'queues', queue, args.lease)
  lease = args.lease
end
local wake, wait, held = P..'wake:'..me, P..'wait:'..queue, P..'held:'..queue
redis.pcall('ZADD', wait, t + 3 * {_MAX_IDLE_LOOK}, me)
if args.woken then call('DEL', wake) end
redis.pcall('XGROUP', 'CREATE', wake, 'qnb', '0', 'MKSTREAM')
call('PEXPIRE', wake, 3600000)
local rest = math.min(lease, {_MAX_IDLE_LOOK})

local due, full = P..'due:'..queue, false
for _, m in ipairs(call('ZRANGEBYSCORE', due, '-inf', t, 'LIMIT', 0, 100)) do
  local one = string.find(m, ':', 1, true)
  local two = string.find(m, ':', one + 1, true)
  local three = string.find(m, ':', two + 1, true)
  local level, base = tonumber(string.sub(m, 1, one - 1)), tonumber(string.sub(m, one + 1, two - 1))
  if not pcall(put, queue, level, string.sub(m, three + 1), base) then
    full = true
    break
  end
  call('ZREM', due, m)
end
local head = call('ZRANGE', due, 0, 0, 'WITHSCORES')
if head[2] then rest = math.min(rest, math.max(full and 500 or 0, tonumber(head[2]) - t)) end

call('ZREMRANGEBYSCORE', held, '-inf', t)
local levels = call('SMEMBERS', P..'levels:'..queue)
levels[#levels + 1] = '0'
table.sort(levels, function(a, b) return tonumber(a) > tonumber(b) end)
for _, level in ipairs(levels) do
  local key = stream(queue, level)
  redis.pcall('XGROUP', 'CREATE', key, 'qnb', '0', 'MKSTREAM')
  if args.known then
    local known = {{}}
    for _, id in ipairs(args.known) do known[id] = true end
    for _, p in ipairs(call('XPENDING', key, 'qnb', '-', '+', args.limit + #args.known, me)) do
      if not known[level..':'..p[1]] and #taken < args.limit then
        call('XCLAIM', key, 'qnb', me, 0, p[1], 'JUSTID')
        local entry = call('XRANGE', key, p[1], p[1])[1]
        if entry then
          local f = entry[2]
          taken[#taken + 1] = {{tonumber(level), p[1], p[4], f[3] and tonumber(f[4]) or 0, f[2]}}
        end
      end
    end
  end
  local over = call('XPENDING', key, 'qnb', 'IDLE', lease, '-', '+', args.limit + 100)
  for _, p in ipairs(over) do
    local id = p[1]
    local until_ = tonumber(call('ZSCORE', held, level..':'..id) or 0)
    if until_ > t then
      call('XCLAIM', key, 'qnb', p[2], 0, id, 'IDLE', math.max(0, lease - (until_ - t)), 'JUSTID')
    elseif #taken >= args.limit then
      rest = 0
      break
    else
      local got = call('XCLAIM', key, 'qnb', me, 0, id)[1]
      if got then
        local f = got[2]
        taken[#taken + 1] = {{tonumber(level), id, p[4] + 1, f[3] and tonumber(f[4]) or 0, f[2]}}
      else
        call('XACK', key, 'qnb', id)
      end
    end
  end
  local pending = call('XPENDING', key, 'qnb', '-', '+', {_PENDING_LOOK})
  for _, p in ipairs(pending) do rest = math.min(rest, math.max(0, lease - p[3])) end
  if #pending == {_PENDING_LOOK} then rest = math.min(rest, 400) end
end

-- Consumers that ended without a word. One with pending entries must stay until they are taken over: removing it
-- would remove them.
for _, name in ipairs(call('ZRANGEBYSCORE', wait, '-inf', t, 'LIMIT', 0, 20)) do
  local holds = false
  for _, level in ipairs(levels) do
    local key = stream(queue, level)
    if #call('XPENDING', key, 'qnb', '-', '+', 1, name) > 0 then holds = true
    else call('XGROUP', 'DELCONSUMER', key, 'qnb', name) end
  end
  if not holds then call('ZREM', wait, name) end
end
return {{lease, rest, levels, taken, call('EXISTS', wake)}}
""",
)

# me, limit, queues. Takes what is there, the highest level first, over all levels in use at this moment.
# Returns [[queue, level, entries], …].
CLAIM = new_script("""
local left, got, streams = args.limit, {}, {}
for _, queue in ipairs(args.queues) do
  for _, level in ipairs(call('SMEMBERS', P..'levels:'..queue)) do
    streams[#streams + 1] = {queue, tonumber(level), #streams}
  end
  streams[#streams + 1] = {queue, 0, #streams}
end
table.sort(streams, function(a, b) if a[2] == b[2] then return a[3] < b[3] else return a[2] > b[2] end end)
for _, s in ipairs(streams) do
  if left <= 0 then break end
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'qnb', args.me, 'COUNT', left, 'STREAMS', stream(s[1], s[2]), '>')
  if reply and reply.err then
    -- A level without a group yet, mostly. What has been taken is handed out first: it is on lease now.
    if #got > 0 then break end
    return reply
  end
  if reply then
    local entries = reply[1][2]
    left = left - #entries
    got[#got + 1] = {s[1], s[2], entries}
  end
end
return got
""")

# me, items: [queue, level, id, count].
ACK = new_script(
    MINE,
    """
local done = 0
for _, m in ipairs(args.items) do
  local key = stream(m[1], m[2])
  if mine(key, m[3], m[4]) then
    call('XACK', key, 'qnb', m[3])
    call('XDEL', key, m[3])
    done = done + 1
  end
end
return done
""",
)

# me, delay ms, items: [queue, level, id, count, base].
RELEASE = new_script(
    MINE,
    _PUT,
    """
local done = 0
for _, m in ipairs(args.items) do
  local key = stream(m[1], m[2])
  if mine(key, m[3], m[4]) then
    local entry = call('XRANGE', key, m[3], m[3])[1]
    if entry then -- put back first: a server out of memory refuses that, and then the entry must stay
      if args.delay > 0 then later(m[1], m[2], entry[2][2], m[5], args.delay)
      else put(m[1], m[2], entry[2][2], m[5]) end
      done = done + 1
    end
    call('XACK', key, 'qnb', m[3])
    call('XDEL', key, m[3])
  end
end
return done
""",
)

# me, reason, cap, items: [queue, level, id, count].
REJECT = new_script(
    MINE,
    """
local done = 0
for _, m in ipairs(args.items) do
  local key = stream(m[1], m[2])
  if mine(key, m[3], m[4]) then
    local entry = call('XRANGE', key, m[3], m[3])[1]
    if entry then
      call('XADD', P..'dead:'..m[1], 'MAXLEN', '~', args.cap, '*', 'b', entry[2][2], 'r', args.reason)
      done = done + 1
    end
    call('XACK', key, 'qnb', m[3])
    call('XDEL', key, m[3])
  end
end
return done
""",
)

# me, ms, items: [queue, level, id, count]. Idle time cannot be set below zero: a lease longer than the queue's own
# is written down beside, and LOOK heeds it.
EXTEND = new_script(
    MINE,
    """
local t, leases, done = now(), {}, 0
for _, m in ipairs(args.items) do
  local queue, key = m[1], stream(m[1], m[2])
  if mine(key, m[3], m[4]) then
    leases[queue] = leases[queue] or tonumber(call('HGET', P..'queues', queue) or args.ms)
    call('XCLAIM', key, 'qnb', args.me, 0, m[3], 'IDLE', math.max(0, leases[queue] - args.ms), 'JUSTID')
    if args.ms > leases[queue] then
      call('ZADD', P..'held:'..queue, t + args.ms, m[2]..':'..m[3])
    else
      call('ZREM', P..'held:'..queue, m[2]..':'..m[3])
    end
    done = done + 1
  end
end
return done
""",
)

# me, queues. A consumer with pending entries must stay: removing it would lose them.
LEAVE = new_script("""
for _, queue in ipairs(args.queues) do
  call('ZREM', P..'wait:'..queue, args.me)
  for level = 0, 9 do
    local pending = redis.pcall('XPENDING', stream(queue, level), 'qnb', '-', '+', 1, args.me)
    if not pending.err and #pending == 0 then call('XGROUP', 'DELCONSUMER', stream(queue, level), 'qnb', args.me) end
  end
end
return call('DEL', P..'wake:'..args.me)
""")

# queue. Waiting: in a stream and not pending, or delayed.
DEPTH = new_script("""
local waiting = call('ZCARD', P..'due:'..args.queue)
for level = 0, 9 do
  local key = stream(args.queue, level)
  local length = call('XLEN', key)
  if length > 0 then
    local pending = redis.pcall('XPENDING', key, 'qnb')
    waiting = waiting + length - (pending.err and 0 or pending[1])
  end
end
return waiting
""")

# queue, limit. What was delivered and not settled is pending, what comes after the last delivered one waits.
# Returns how many it dropped; to be called until that is 0.
PURGE = new_script("""
local dropped = call('ZREMRANGEBYRANK', P..'due:'..args.queue, 0, args.limit - 1)
for level = 0, 9 do
  local key = stream(args.queue, level)
  local pending = call('XLEN', key) > 0 and redis.pcall('XPENDING', key, 'qnb')
  if pending and (pending.err or pending[1] == 0) then
    dropped = dropped + call('XTRIM', key, 'MAXLEN', 0)
  elseif pending then
    local from
    for _, group in ipairs(call('XINFO', 'GROUPS', key)) do
      for i = 1, #group, 2 do if group[i] == 'last-delivered-id' then from = group[i + 1] end end
    end
    for _, entry in ipairs(call('XRANGE', key, '('..from, '+', 'COUNT', args.limit)) do
      dropped = dropped + call('XDEL', key, entry[1])
    end
  end
end
return dropped
""")

# queue.
REMOVE = new_script("""
call('HDEL', P..'queues', args.queue)
for level = 0, 9 do call('DEL', stream(args.queue, level)) end
for _, kind in ipairs({'levels:', 'due:', 'dead:', 'held:', 'wait:'}) do call('DEL', P..kind..args.queue) end
return 1
""")
