# One direction of a relay: the states are in half.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t
from tcpproxy._core.buffer cimport buffer_clear, buffer_drop, buffer_fill
from tcpproxy._core.net cimport net_recv, net_send, net_shut_write, net_would_block
from tcpproxy._core.poller cimport READY_IN, READY_OUT, poller_rearm


cdef inline void _not_ready(Side *side, uint32_t bit, Pump *pump) noexcept nogil:
    side.ready &= ~bit
    poller_rearm(pump.poller, &side.watch, bit)


cdef int64_t _send(Half *half, Side *sink, const char *data, uint32_t size, Pump *pump) noexcept nogil:
    """How many bytes the sink took. 0: it is full (no longer READY_OUT), or has failed (sink.error)."""
    cdef int64_t sent = net_send(sink.watch.fd, data, size)
    if sent > 0:
        half.delivered += sent
        return sent
    if sent == 0 or net_would_block(sent):
        _not_ready(sink, READY_OUT, pump)
    else:
        sink.error = <int> -sent
    return 0


cdef int _drain(Half *half, Side *sink, Pump *pump) noexcept nogil:
    """Sends what waits in the buffer: PUMP_MOVED if any of it went."""
    cdef int64_t sent = _send(half, sink, half.buffer.memory + half.buffer.start,
                              half.buffer.end - half.buffer.start, pump)
    if sent > 0:
        buffer_drop(&half.buffer, <uint32_t> sent)
    if sink.error:
        half_break(half)
    return PUMP_MOVED if sent > 0 else PUMP_WAIT


cdef int64_t _read(Half *half, Side *source, Pump *pump) noexcept nogil:
    """Bytes now in the scratch; 0: none, for whatever reason (source.ready, half.state)."""
    cdef int64_t got = net_recv(source.watch.fd, pump.scratch, pump.size)
    if got > 0:
        # A read that leaves room has emptied the socket, which saves the call that would say so; but not at an
        # urgent mark, where recv stops early, and not when an end is pending, of which no further event would tell.
        if got < <int64_t> pump.size and not source.hinted:
            _not_ready(source, READY_IN, pump)
        return got
    if got == 0:
        source.ended = True
        # After a failed send the pending error is used up, and recv says 0 where it means reset.
        half.state = HALF_BROKEN if source.error else HALF_DRAINING
    elif net_would_block(got):
        _not_ready(source, READY_IN, pump)
    else:
        source.error = <int> -got
        half.state = HALF_BROKEN
    return 0


cdef int half_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Moves bytes until one side would block, the budget is used up, or the direction has ended.

    Returns PUMP_ bits. A failure is left in source.error or sink.error, with half.state HALF_BROKEN.
    """
    cdef int result = PUMP_WAIT
    cdef int64_t got, sent
    cdef uint32_t used = 0
    while half.state < HALF_SHUT:
        if half.buffer.memory != NULL:
            if not sink.ready & READY_OUT:
                return result
            result |= _drain(half, sink, pump)
        elif half.state == HALF_DRAINING:
            net_shut_write(sink.watch.fd)
            half.state = HALF_SHUT
            return result | PUMP_MOVED
        elif not source.ready & READY_IN:
            return result
        elif used >= pump.budget:
            return result | PUMP_MORE
        else:
            got = _read(half, source, pump)
            if got == 0:
                continue
            used += <uint32_t> got
            result |= PUMP_MOVED
            sent = _send(half, sink, pump.scratch, <uint32_t> got, pump)
            if sink.error:
                half_break(half)
            elif sent < got and buffer_fill(&half.buffer, pump.scratch + sent, <uint32_t> (got - sent)) < 0:
                sink.error = ENOMEM     # bytes are lost: the sink must not take what follows for the whole
                half_break(half)
    return result


cdef void half_break(Half *half) noexcept nogil:
    buffer_clear(&half.buffer)
    if half.state != HALF_SHUT:
        half.state = HALF_BROKEN
