# A half that faults shape: the model is in shaped.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from tcpproxy._core.buffer cimport buffer_clear
from tcpproxy._core.half cimport HALF_BROKEN, HALF_DRAINING, HALF_SHUT, MODE_COPY, MODE_REFUSED, PUMP_MORE, PUMP_MOVED, \
    PUMP_STALLED, PUMP_WAIT, half_break, half_drain_buffer, half_give_pipe, half_pass_on_end, half_read_nothing
from tcpproxy._core.net cimport net_recv
from tcpproxy._core.outlet cimport TAKE_BYTES, TAKE_FAILED, TAKE_NOTHING, TAKE_NO_MEMORY, outlet_due_ns, outlet_take
from tcpproxy._core.poller cimport READY_IN, READY_OUT, poller_rearm
from tcpproxy._core.shaper cimport SOURCE_EOF, shaper_end, shaper_holds, shaper_put, shaper_room
from tcpproxy._core.splice cimport pipe_read
from tcpproxy._core.tap cimport tap_claim, tap_commit

cdef enum:
    TAP_FULL = -1           # another result of _take, beside TAKE_: the ring of the tap has no room


cdef int shaped_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    cdef int result = PUMP_WAIT
    cdef int64_t moved
    cdef uint32_t used = 0
    while half.state < HALF_SHUT:
        if half.buffer.memory != NULL:
            if not sink.ready & READY_OUT:
                return result
            result |= half_drain_buffer(half, source, sink, pump)
        elif used >= pump.budget:
            return result | PUMP_MORE
        else:
            moved = _step(half, source, sink, pump)
            if moved < 0:
                return result | <int> ~moved
            used += <uint32_t> moved
            result |= PUMP_MOVED
    return result


cdef int64_t _step(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Takes bytes, an end or a failure from the shaper, or else reads.

    Returns how many bytes it has taken or read, to go on; or ~ the bits with which the pump returns.
    """
    cdef int what = _take(half, source, pump)
    if what == TAKE_BYTES:
        return half.buffer.end - half.buffer.start
    if what == TAP_FULL:
        return ~PUMP_STALLED
    if what == TAKE_FAILED:
        half.state = HALF_BROKEN
    elif what == TAKE_NO_MEMORY:
        _lose(half, sink, pump)
    elif half.state != HALF_DRAINING:
        return _read(half, source, sink, pump) if what == TAKE_NOTHING else ~PUMP_WAIT
    elif shaper_holds(half.shaper):
        return ~PUMP_WAIT
    else:
        half_pass_on_end(half, source, sink, pump)
    return 0


cdef int _take(Half *half, Side *source, Pump *pump) noexcept nogil:
    """Takes bytes that are due into the empty buffer, and records them; or takes an end. Returns TAKE_ of outlet.pxd, or
    TAP_FULL."""
    cdef bint record = pump.tap != NULL and half.delivered >= half.shaper.recorded
    cdef char *place = NULL
    cdef uint32_t size
    cdef int what
    if record and outlet_due_ns(half.shaper, False, pump.now_ns[0]) <= pump.now_ns[0]:
        place = tap_claim(pump.tap, pump.size)
        if place == NULL:
            return TAP_FULL
    what = outlet_take(half.shaper, pump.size, &half.buffer, pump.now_ns[0])
    if what == TAKE_BYTES and place != NULL:
        size = half.buffer.end - half.buffer.start
        memcpy(place, half.buffer.memory + half.buffer.start, size)
        tap_commit(pump.tap, source != pump.tap.client, half.delivered, size)
    return what


cdef int64_t _read(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Reads into the line. Returns as _step."""
    cdef uint32_t room = <uint32_t> min(<uint64_t> min(pump.size, shaper_room(half.shaper, pump.now_ns[0])), pump.may_read)
    cdef int64_t got
    if room == 0 or not source.ready & READY_IN:
        return ~PUMP_WAIT
    got = net_recv(source.watch.fd, pump.scratch, room)
    if got <= 0:
        half_read_nothing(half, source, got, pump)
        if half.state == HALF_DRAINING:
            return 0
        return ~(PUMP_MORE if source.ready & READY_IN else PUMP_WAIT)   # PUMP_MORE: see half_pump
    pump.may_read -= got
    if got < <int64_t> room and not source.read_to_eagain:      # see half.pyx, _recv
        source.ready &= ~READY_IN
        poller_rearm(pump.poller, &source.watch, READY_IN)
    if shaper_put(half.shaper, pump.scratch, <uint32_t> got, pump.now_ns[0]) < 0:
        _lose(half, sink, pump)
    return got


cdef void _lose(Half *half, Side *sink, Pump *pump) noexcept nogil:
    """There is no memory for bytes: nothing after them may be delivered."""
    sink.error = ENOMEM
    half_break(half, pump)


# --- beginning and end ---

cdef int shaped_begin(Half *half, Shaper *shaper, const Side *source, Pump *pump) noexcept nogil:
    cdef uint64_t now_ns = pump.now_ns[0]
    cdef int64_t got
    half.shaper = shaper
    half.mode = MODE_REFUSED            # no splice until shaped_end
    if half.state >= HALF_SHUT:
        return 0
    shaper.recorded = half.delivered + half.buffer.end - half.buffer.start      # with a tap there is no pipe
    if half.buffer.memory != NULL:
        if shaper_put(shaper, half.buffer.memory + half.buffer.start, half.buffer.end - half.buffer.start, now_ns) < 0:
            return -1
        buffer_clear(&half.buffer)
    while half.pipe != NULL and half.pipe.held:
        got = pipe_read(half.pipe, pump.scratch, pump.size)
        if got <= 0 or shaper_put(shaper, pump.scratch, <uint32_t> got, now_ns) < 0:
            return -1
    if half.pipe != NULL:
        half_give_pipe(half, pump)
    if half.state == HALF_DRAINING and source.eof_read:
        shaper_end(shaper, SOURCE_EOF, now_ns)
    return 0


cdef void shaped_end(Half *half) noexcept nogil:
    half.shaper = NULL
    half.mode = MODE_COPY
