# What faults do to a relay: the model is in bending.pxd.
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from tcpproxy._core.closing cimport closing_cut, closing_out_of_memory
from tcpproxy._core.half cimport HALF_SHUT, Half
from tcpproxy._core.loop cimport CLIENT, RELAY_RESOLVING, RELAY_RELAYING, UPSTREAM, loop_enqueue, relay_shaping
from tcpproxy._core.net cimport net_unpack
from tcpproxy._core.outlet cimport TAKE_NOTHING, TAKE_RESET, outlet_due_ns, outlet_verdict
from tcpproxy._core.plan cimport plan_hold, plan_release, plan_takes
from tcpproxy._core.reports cimport reports_fault
from tcpproxy._core.shaped cimport shaped_begin, shaped_end
from tcpproxy._core.shaper cimport Shaper, Shaping, shaper_begin, shaper_holds
from tcpproxy._core.shaping cimport shaping_adopt, shaping_dial_ns, shaping_free, shaping_new
from tcpproxy._core.table cimport table_at
from tcpproxy._core.timers cimport TIMER_NONE, TIMER_SHAPER, alarms_cancel, alarms_set, timers_cancel


# --- taking hold ---

cdef bint _is_meant(const Relay *relay, const Plan *plan, uint64_t *ip_high, uint64_t *ip_low) noexcept nogil:
    """Does the plan take the relay? Fills in the address of its client, for the Shaping."""
    cdef uint8_t ip[16]
    cdef uint16_t port
    cdef int i
    ip_high[0] = ip_low[0] = 0
    if net_unpack(&relay.client, ip, &port):
        for i in range(8):
            ip_high[0] = ip_high[0] << 8 | ip[i]
            ip_low[0] = ip_low[0] << 8 | ip[8 + i]
    return plan_takes(plan, relay.id, ip_high[0], ip_low[0])


cdef bint _adopt(Loop *loop, Relay *relay, Plan *plan) noexcept nogil:
    """Gives a relay the rules of a plan that take the relay. False: there was no memory, and the relay has been ended."""
    cdef Shaping *shaping = relay_shaping(relay)
    cdef Shaper *shaper
    cdef uint64_t ip_high, ip_low
    cdef int side
    if shaping == NULL:
        if not _is_meant(relay, plan, &ip_high, &ip_low):
            return True
        shaping = shaping_new(relay.id, ip_high, ip_low, loop.pump.size)
        if shaping != NULL:
            shaping.alarm.owner = relay
    for side in range(2 if shaping != NULL else 0):
        if relay.halves[side].shaper == NULL:       # it is not shaped now
            shaper_begin(&shaping.halves[side], relay.halves[side].delivered, loop.now_ns)
    if shaping == NULL or shaping_adopt(shaping, plan, loop.now_ns) < 0:
        if shaping != NULL and relay_shaping(relay) == NULL:
            shaping_free(shaping)
        closing_out_of_memory(loop, relay)
        return False
    for side in range(2):
        shaper = &shaping.halves[side]
        if shaper.count and relay.halves[side].shaper == NULL \
                and shaped_begin(&relay.halves[side], shaper, &relay.sides[side], &loop.pump) < 0:
            closing_out_of_memory(loop, relay)
            return False
    _let_go(loop, relay, shaping)
    return True


cdef void _let_go(Loop *loop, Relay *relay, Shaping *shaping) noexcept nogil:
    """Removes the shapers of directions that are not shaped any more, and frees the Shaping if no direction is shaped."""
    cdef Half *half
    cdef int side
    for side in range(2):
        half = &relay.halves[side]
        if half.shaper != NULL and not half.shaper.count and not half.shaper.over and not shaper_holds(half.shaper):
            shaped_end(half)
    if relay_shaping(relay) == NULL:
        alarms_cancel(&loop.timers, &shaping.alarm)
        shaping_free(shaping)


cdef bint bending_begin(Loop *loop, Relay *relay) noexcept nogil:
    if not _adopt(loop, relay, loop.plan):
        return False
    if not bending_has(relay):
        return True
    if shaping_dial_ns(relay_shaping(relay)) > loop.now_ns:
        timers_cancel(&loop.timers, &relay.deadline)
        bending_go_on(loop, relay)
        return False
    return bending_go_on(loop, relay)


cdef bint bending_may_dial(Loop *loop, Relay *relay) noexcept nogil:
    return not bending_has(relay) or shaping_dial_ns(relay_shaping(relay)) <= loop.now_ns


cdef void bending_change(Loop *loop, Plan *plan) noexcept nogil:
    cdef Plan *before = loop.plan
    cdef Relay *relay
    cdef uint32_t i
    plan_hold(plan)
    loop.plan = plan
    for i in range(loop.table.size):
        relay = table_at(&loop.table, i)
        if RELAY_RESOLVING <= relay.state <= RELAY_RELAYING:
            _change(loop, relay, plan)
    plan_release(before)


cdef void _change(Loop *loop, Relay *relay, Plan *plan) noexcept nogil:
    cdef bint never = bending_waits(relay) and bending_has(relay) and shaping_dial_ns(relay_shaping(relay)) == UINT64_MAX
    if not _adopt(loop, relay, plan):
        return
    if never and (not bending_has(relay) or shaping_dial_ns(relay_shaping(relay)) != UINT64_MAX):
        closing_cut(loop, relay, CLIENT, True, False)
        return
    if not bending_has(relay) or bending_go_on(loop, relay):
        loop_enqueue(loop, relay)


# --- a turn ---

cdef void _report(Loop *loop, Relay *relay, Shaping *shaping) noexcept nogil:
    cdef uint32_t news = shaping.acted & ~shaping.told, i
    if not news:
        return
    shaping.told = shaping.acted
    for i in range(shaping.plan.count):
        if news & <uint32_t> 1 << i:
            reports_fault(loop, relay, shaping.plan.rules[i].key, _position(&relay.halves[CLIENT]),
                          _position(&relay.halves[UPSTREAM]))


cdef uint64_t _position(const Half *half) noexcept nogil:
    return half.shaper.passed if half.shaper != NULL else half.delivered


cdef bint bending_go_on(Loop *loop, Relay *relay) noexcept nogil:
    cdef Shaping *shaping = relay_shaping(relay)
    cdef uint64_t due_ns = UINT64_MAX
    cdef Half *half
    cdef int side, verdict
    for side in range(2):
        half = &relay.halves[side]
        if half.shaper == NULL:
            continue
        verdict = outlet_verdict(half.shaper, loop.now_ns)
        if verdict != TAKE_NOTHING:
            _report(loop, relay, shaping)
            closing_cut(loop, relay, side, verdict == TAKE_RESET, half.shaper.over != 0)
            return False
        due_ns = min(due_ns, outlet_due_ns(half.shaper, _blocked(loop, relay, side), loop.now_ns))
    if bending_waits(relay):
        due_ns = min(due_ns, shaping_dial_ns(shaping))
    _report(loop, relay, shaping)
    if due_ns == UINT64_MAX:
        alarms_cancel(&loop.timers, &shaping.alarm)
    elif shaping.alarm.kind == TIMER_NONE or shaping.alarm.due_ns != due_ns:
        alarms_set(&loop.timers, &shaping.alarm, TIMER_SHAPER, due_ns)
    _let_go(loop, relay, shaping)
    return True


cdef void bending_alarm(Loop *loop, Relay *relay) noexcept nogil:
    if relay.state <= RELAY_RELAYING:
        loop_enqueue(loop, relay)       # the turn sets the alarm again


cdef inline bint _blocked(const Loop *loop, const Relay *relay, int side) noexcept nogil:
    """Nothing can leave before an event: the sink is full or not connected yet, or the direction is paused or has ended."""
    return relay.state != RELAY_RELAYING or relay.halves[side].buffer.memory != NULL or loop.paused & (1 << side) \
        or relay.halves[side].state >= HALF_SHUT
