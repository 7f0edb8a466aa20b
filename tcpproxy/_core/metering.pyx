# Rates: the model is in metering.pxd.
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.bucket cimport bucket_charge, bucket_give_back, bucket_reserve, limit_set
from tcpproxy._core.half cimport HALF_OPEN, PUMP_MORE, PUMP_SHAPED, PUMP_STALLED, PUMP_WAIT, SPLICE_WORTH_BYTES, \
    TURN_LEAST_BYTES, ZERO_COPY_AUTO, ZERO_COPY_OFF, Half, Pump, Side, half_not_ready, half_pump, half_waiting
from tcpproxy._core.loop cimport Counters, Meter, Origin, loop_of_target
from tcpproxy._core.net cimport net_unread
from tcpproxy._core.poller cimport READY_IN
from tcpproxy._core.shaped cimport shaped_pump
from tcpproxy._core.shaper cimport shaper_room
from tcpproxy._core.sync cimport sync_bump
from tcpproxy._core.timers cimport TIMER_RATE, alarms_cancel, alarms_set

cdef enum:
    # A choice. The time between two turns of a connection is PORTION_NS times the number of connections that share the rate.
    # A wake-up that is late by less than the time of the burst (1 / BURST_PART s) loses no throughput.
    PORTION_NS = 4000000
    LEAST_PORTION_BYTES = 1448      # a segment
    MOST_PORTION_BYTES = TURN_LEAST_BYTES
    BURST_PART = 50                 # the burst is the rate of a second divided by this: 20 ms
    MOST_BURST_BYTES = 1000000000


cdef uint32_t _portion(uint64_t rate) noexcept nogil:
    cdef uint64_t size = rate * PORTION_NS // <uint64_t> 1000000000
    return <uint32_t> min(max(size, <uint64_t> LEAST_PORTION_BYTES), <uint64_t> MOST_PORTION_BYTES)


cdef void metering_set(Group *group, int side, uint64_t total, uint64_t each) noexcept nogil:
    cdef uint64_t rate
    cdef int i
    group.portion[side] = MOST_PORTION_BYTES
    for i in range(2):
        rate = each if i else total
        if rate:
            limit_set(&group.each[side] if i else &group.rate[side], rate,
                      min(max(rate // BURST_PART, <uint64_t> 2 * LEAST_PORTION_BYTES), <uint64_t> MOST_BURST_BYTES))
            group.portion[side] = min(group.portion[side], _portion(rate))


cdef bint metering_begin(Relay *relay) noexcept nogil:
    if relay.origin == NULL:
        relay.origin = <Origin *> calloc(1, sizeof(Origin))
    if relay.origin == NULL:
        return False
    relay.origin.meter = <Meter *> calloc(1, sizeof(Meter))
    if relay.origin.meter == NULL:
        return False
    relay.origin.meter.alarm.owner = relay
    return True


cdef void _give_back(Loop *loop, const Meter *meter) noexcept nogil:
    """Gives back bytes of the shared rate that are reserved and unread: else others would wait for bytes that never pass."""
    cdef int side
    for side in range(2):
        if meter.portion[side] and loop.group.rate[side].rate:
            bucket_give_back(&loop.group.used_up_ns[side], &loop.group.rate[side], meter.portion[side])


cdef void metering_end(Loop *loop, Relay *relay) noexcept nogil:
    if relay.origin == NULL or relay.origin.meter == NULL:
        return
    alarms_cancel(&loop.timers, &relay.origin.meter.alarm)
    _give_back(loop, relay.origin.meter)
    free(relay.origin.meter)
    relay.origin.meter = NULL


# --- how much may be read ---

cdef inline bint _wants(const Loop *loop, Half *half, const Side *source) noexcept nogil:
    """Would the direction read now if there were no rate?"""
    return half.state == HALF_OPEN and source.ready & READY_IN and half.buffer.memory == NULL and half.pipe == NULL \
        and (half.shaper == NULL or shaper_room(half.shaper, loop.now_ns) > 0)


cdef uint32_t _may_read(Loop *loop, Relay *relay, int side, uint32_t *unread_now) noexcept nogil:
    """How many bytes the direction may read now. 0: there is nothing to read; or it must wait, and an alarm is set.

    `unread_now`: the number of unread bytes, if the socket was asked in this call; else 0.
    """
    cdef Meter *meter = relay.origin.meter
    unread_now[0] = 0
    if meter.portion[side] == 0:
        if not _wants(loop, &relay.halves[side], &relay.sides[side]):
            return 0
        unread_now[0] = <uint32_t> net_unread(relay.sides[side].watch.fd)
        if unread_now[0] == 0:
            return 1            # an end of file or a failure
        _reserve(loop, relay, side, min(unread_now[0], loop.group.portion[side]))
    if meter.due_ns[side] <= loop.now_ns:
        return meter.portion[side]
    if meter.alarm.kind == TIMER_NONE or meter.due_ns[side] < meter.alarm.due_ns:
        alarms_set(&loop.timers, &meter.alarm, TIMER_RATE, meter.due_ns[side])
    return 0


cdef void _reserve(Loop *loop, Relay *relay, int side, uint32_t size) noexcept nogil:
    cdef Group *group = loop.group
    cdef Meter *meter = relay.origin.meter
    cdef Counters *own = loop_of_target(loop, relay.target)
    cdef uint64_t due_ns = loop.now_ns
    if group.rate[side].rate:
        due_ns = max(due_ns, bucket_reserve(&group.used_up_ns[side], &group.rate[side], size, loop.now_ns))
    if group.each[side].rate:
        due_ns = max(due_ns, bucket_reserve(&meter.used_up_ns[side], &group.each[side], size, loop.now_ns))
    meter.portion[side] = size
    meter.due_ns[side] = due_ns
    sync_bump(&loop.counters.throttled_ns, due_ns - loop.now_ns)
    if own != NULL:
        sync_bump(&own.throttled_ns, due_ns - loop.now_ns)


cdef void _account(Loop *loop, Meter *meter, int side, uint64_t got) noexcept nogil:
    cdef Group *group = loop.group
    cdef uint64_t debt
    if got <= meter.portion[side]:
        meter.portion[side] -= <uint32_t> got
        return
    debt = got - meter.portion[side]
    meter.portion[side] = 0
    if group.rate[side].rate:
        bucket_charge(&group.used_up_ns[side], &group.rate[side], debt, loop.now_ns)
    if group.each[side].rate:
        bucket_charge(&meter.used_up_ns[side], &group.each[side], debt, loop.now_ns)


# --- the pump ---

cdef int _pump(Loop *loop, Relay *relay, int side, uint32_t may) noexcept nogil:
    """Pumps. The first read takes at most `may` bytes. Returns PUMP_ bits."""
    cdef Pump *pump = &loop.pump
    cdef Pump usual = pump[0]
    cdef int result
    pump.may_read = may
    if may:
        pump.size = min(pump.size, may)
        pump.splice_size = min(pump.splice_size, may)
    if may < SPLICE_WORTH_BYTES and pump.zero_copy == ZERO_COPY_AUTO:
        pump.zero_copy = ZERO_COPY_OFF
    if relay.halves[side].shaper != NULL:
        result = shaped_pump(&relay.halves[side], &relay.sides[side], &relay.sides[1 - side], pump)
    else:
        pump.budget = may
        result = half_pump(&relay.halves[side], &relay.sides[side], &relay.sides[1 - side], pump)
    pump.may_read = usual.may_read
    pump.size = usual.size
    pump.splice_size = usual.splice_size
    pump.zero_copy = usual.zero_copy
    pump.budget = usual.budget
    return result


cdef int metering_pump(Loop *loop, Relay *relay, int side) noexcept nogil:
    cdef Half *half = &relay.halves[side]
    cdef int result = PUMP_SHAPED if half.shaper != NULL else PUMP_WAIT
    cdef uint64_t used = 0
    cdef int64_t got
    cdef uint32_t may, unread
    if loop.paused & (1 << side):
        return result
    while True:
        may = _may_read(loop, relay, side, &unread)
        got = -<int64_t> (half.delivered + half_waiting(half))
        result |= _pump(loop, relay, side, may) & ~PUMP_MORE
        got += half.delivered + half_waiting(half)
        if got > 0:             # else the half is broken, and its bytes were dropped
            _account(loop, relay.origin.meter, side, got)
            used += got
            if got == <int64_t> unread and not relay.sides[side].read_to_eagain and relay.sides[side].ready & READY_IN:
                # The socket is empty, as after a read that does not fill the scratch buffer: see _recv in half.pyx. Bytes
                # that came after net_unread cause an event.
                half_not_ready(&relay.sides[side], READY_IN, &loop.pump)
        if result & PUMP_STALLED or not _wants(loop, half, &relay.sides[side]):
            return result
        if may == 0 and relay.origin.meter.portion[side]:
            return result       # not yet
        if used >= loop.pump.budget or (may and got <= 0):      # the second: see PUMP_MORE in half_pump
            return result | PUMP_MORE
