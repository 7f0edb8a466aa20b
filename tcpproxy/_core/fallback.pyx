# Forwards with several targets: the model is in fallback.pxd.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.connecting cimport Connecting, connecting_new, connecting_restart
from tcpproxy._core.events cimport EVENT_UPSTREAM_DOWN, EVENT_UPSTREAM_UP
from tcpproxy._core.loop cimport RELAY_RESOLVING
from tcpproxy._core.reports cimport reports_missed, reports_target
from tcpproxy._core.sync cimport sync_claim, sync_load, sync_peek, sync_swap
from tcpproxy._core.timers cimport TIMER_SHARE, alarms_cancel, alarms_set, timers_cancel


cdef inline bint _is_passed_over(const uint64_t *down, uint64_t now_ns) noexcept nogil:
    return sync_peek(down) > now_ns


cdef bint _may_try(uint64_t *down, uint64_t now_ns) noexcept nogil:
    """True: the caller tries the target. When the time of a skipped target is over, one caller only gets True."""
    cdef uint64_t word = sync_load(down)
    return word <= FALLBACK_AT_ONCE or (word <= now_ns and sync_claim(down, word, now_ns + FALLBACK_PASS_OVER_NS))


cdef bint _choose(Loop *loop, Relay *relay) noexcept nogil:
    """Sets Relay.target to the next target to try. False: all have been tried."""
    cdef Connecting *connecting = relay.connecting
    cdef uint64_t *down = &loop.group.down[connecting.first]
    cdef int count = loop.upstreams[connecting.first].targets, chosen = -1, untried = -1, i
    for i in range(count):
        if connecting.tried & <uint32_t> 1 << i:
            continue
        if untried < 0:
            untried = i
        if _may_try(&down[i], loop.now_ns):
            chosen = i
            break
    connecting.passed_over = chosen < 0
    if chosen < 0:
        chosen = untried
    if chosen < 0:
        return False
    connecting.tried |= <uint32_t> 1 << chosen
    connecting.since_ns = loop.now_ns
    connecting.reason = 0
    relay.target = <uint8_t> (connecting.first + chosen)
    relay.state = RELAY_RESOLVING
    _give_time(loop, relay, down, count)
    return True


cdef void _give_time(Loop *loop, Relay *relay, const uint64_t *down, int count) noexcept nogil:
    """Sets the alarm for the end of the current target's share of the time."""
    cdef Connecting *connecting = relay.connecting
    cdef uint64_t left_ns = relay.deadline.due_ns - loop.now_ns if relay.deadline.due_ns > loop.now_ns else 0
    cdef int i, left = 1
    for i in range(count):
        if not connecting.tried & <uint32_t> 1 << i and (connecting.passed_over or not _is_passed_over(&down[i], loop.now_ns)):
            left += 1
    if left > 1:
        alarms_set(&loop.timers, &connecting.share, TIMER_SHARE, loop.now_ns + left_ns // left)
    else:
        alarms_cancel(&loop.timers, &connecting.share)


cdef bint fallback_begin(Loop *loop, Relay *relay) noexcept nogil:
    relay.connecting = connecting_new(NULL, &loop.tuning)
    if relay.connecting == NULL:
        return False
    relay.connecting.share.owner = relay
    relay.connecting.first = relay.target
    return _choose(loop, relay)


cdef bint fallback_next(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil:
    cdef Connecting *connecting = relay.connecting
    cdef uint8_t failed = relay.target
    cdef bint was_up, more
    cdef uint64_t word = FALLBACK_AT_ONCE
    if loop.now_ns >= connecting.since_ns + FALLBACK_SLOW_NS:
        word = loop.now_ns + FALLBACK_PASS_OVER_NS
    was_up = sync_swap(&loop.group.down[failed], word) == 0
    if connecting.list != NULL:
        relay.upstream = connecting.list.addresses[connecting.last]
    timers_cancel(&loop.timers, &relay.check)
    connecting_restart(connecting, loop.pump.poller)
    more = _choose(loop, relay)
    if more:
        reports_missed(loop, failed, reason)        # else reports_failed counts it
    if was_up:
        reports_target(loop, EVENT_UPSTREAM_DOWN, failed, reason, error, relay.target)
    return more


cdef void fallback_reached(Loop *loop, Relay *relay) noexcept nogil:
    alarms_cancel(&loop.timers, &relay.connecting.share)
    if sync_peek(&loop.group.down[relay.target]) and sync_swap(&loop.group.down[relay.target], 0):
        reports_target(loop, EVENT_UPSTREAM_UP, relay.target, 0, 0, relay.target)
