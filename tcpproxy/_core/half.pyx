# One direction of a relay: the states are in half.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t
from tcpproxy._core.buffer cimport buffer_clear, buffer_drop, buffer_fill
from tcpproxy._core.net cimport ECONNRESET, NET_POLL_CLEARS_ERROR, net_out_of_resources, net_no_delay, net_recv, net_send, \
    net_shut_write, net_pacing_off, net_unread, net_would_block
from tcpproxy._core.poller cimport READY_IN, READY_OUT, poller_rearm
from tcpproxy._core.splice cimport Pipe, pipe_drain, pipe_fill, pipe_give, pipe_read, pipe_take, splice_refused
from tcpproxy._core.sync cimport sync_bump

cdef enum:
    STREAK = 2              # reads in a row that change the mode; with 4 a transfer of 1 MiB cost a third more, see bench/README
    SEGMENT = 536           # bytes that fit any TCP segment, so that no rest of them waits for an acknowledgement
    SMALL = 16384           # a splice of less is dearer than a copy
    CONFIRM = 65536         # a splice of less has probably emptied the source


cdef inline void _not_ready(Side *side, uint32_t bit, Pump *pump) noexcept nogil:
    side.ready &= ~bit
    poller_rearm(pump.poller, &side.watch, bit)


cdef int64_t _send(Half *half, Side *sink, const char *data, uint32_t size, Pump *pump) noexcept nogil:
    """How many bytes the sink took. 0: it is full (no longer READY_OUT), or has failed (sink.error)."""
    cdef int64_t sent
    if not sink.no_delay and (half.delivered or size > SEGMENT):
        net_no_delay(sink.watch.fd)
        sink.no_delay = True
    sent = net_send(sink.watch.fd, data, size)
    if sent > 0:
        half.delivered += sent
        return sent
    if sent == 0 or net_would_block(sent):
        _not_ready(sink, READY_OUT, pump)
    else:
        sink.error = <int> -sent
    return 0


# --- out ---

cdef void _deliver(Half *half, Side *sink, uint32_t size, Pump *pump) noexcept nogil:
    """Sends what was read into the scratch, and keeps what the sink would not take."""
    cdef int64_t sent = _send(half, sink, pump.scratch, size, pump)
    if not sink.error and sent < <int64_t> size:
        if buffer_fill(&half.buffer, pump.scratch + sent, <uint32_t> (size - sent)) < 0:
            sink.error = ENOMEM     # bytes are lost: the sink must not take what follows for the whole
    if sink.error:
        half_break(half, pump)


cdef int _drain_buffer(Half *half, Side *sink, Pump *pump) noexcept nogil:
    """Sends what waits in the buffer: PUMP_MOVED if any of it went."""
    cdef int64_t sent = _send(half, sink, half.buffer.memory + half.buffer.start,
                              half.buffer.end - half.buffer.start, pump)
    if sent > 0:
        buffer_drop(&half.buffer, <uint32_t> sent)
    if sink.error:
        half_break(half, pump)
    return PUMP_MOVED if sent > 0 else PUMP_WAIT


cdef void _give_pipe(Half *half, Pump *pump) noexcept nogil:
    cdef Pipe *pipe = half.pipe
    half.pipe = NULL                    # before it may be freed: see Worker.abandon
    pipe_give(&pump.pipes, pipe)


cdef int _drain_pipe(Half *half, Side *sink, Pump *pump) noexcept nogil:
    """Sends what waits in the pipe: PUMP_MOVED if any of it went."""
    cdef int64_t sent = pipe_drain(half.pipe, sink.watch.fd)
    cdef int result = PUMP_WAIT
    if sent > 0:
        half.delivered += sent
        sync_bump(&pump.spliced, sent)
        result = PUMP_MOVED
    elif sent == 0 or net_would_block(sent):
        _not_ready(sink, READY_OUT, pump)
    elif splice_refused(sent):
        half.mode = MODE_REFUSED
        sent = pipe_read(half.pipe, pump.scratch, pump.size)
        if sent > 0:
            _deliver(half, sink, <uint32_t> sent, pump)
            result = PUMP_MOVED
        else:
            sink.error = ENOMEM         # bytes that cannot be had back are lost: see _deliver
    else:
        sink.error = <int> -sent
    if sink.error:
        half_break(half, pump)
    elif half.pipe.held == 0:
        _give_pipe(half, pump)
    return result


cdef void _pass_on_end(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    cdef int rc = 0
    if not (source.eof_read and sink.eof_read and source.fin_sent):    # else both are closed in a moment, which says the same
        rc = net_shut_write(sink.watch.fd)
    if rc < 0:
        sink.error = -rc                # or the sink would wait for its end of file
        half_break(half, pump)
        return
    sink.fin_sent = True
    half.state = HALF_SHUT


# --- in ---

cdef void _choose_mode(Half *half, Side *sink, int64_t got, Pump *pump) noexcept nogil:
    """Is it bulk? Splice once some reads in a row have filled the scratch, copy again once some have been small."""
    cdef bint speaks = got < SMALL if half.mode == MODE_SPLICE else got == <int64_t> pump.size
    half.streak = half.streak + 1 if speaks else 0
    if half.streak < STREAK:
        return
    half.streak = 0
    if not sink.pacing_off:
        sink.pacing_off = True
        net_pacing_off(sink.watch.fd)
    if pump.zero_copy == ZERO_COPY_AUTO and half.mode != MODE_REFUSED:
        half.mode = MODE_SPLICE if half.mode == MODE_COPY else MODE_COPY


cdef int64_t _recv(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Bytes now in the scratch; 0: none, for whatever reason (source.ready, half.state)."""
    cdef int64_t got = net_recv(source.watch.fd, pump.scratch, pump.size)
    if got == 0 and source.error_pending and NET_POLL_CLEARS_ERROR:
        got = -ECONNRESET
    if got > 0:
        # A read that leaves room has emptied the socket, which saves the call that would say so; but not at an
        # urgent mark, where recv stops early, and not when an end is pending, of which no further event would tell.
        if got < <int64_t> pump.size and not source.read_to_eagain:
            _not_ready(source, READY_IN, pump)
        _choose_mode(half, sink, got, pump)
        return got
    if got == 0:
        source.eof_read = True
        # After a failed send the pending error is used up, and recv says 0 where it means reset.
        half.state = HALF_BROKEN if source.error else HALF_DRAINING
    elif net_would_block(got):
        # At an urgent mark recv says so with bytes queued, if a signal is pending: a SIGSTOP, say. No event would follow.
        if not source.read_to_eagain or net_unread(source.watch.fd) == 0:
            _not_ready(source, READY_IN, pump)
    else:
        source.error = <int> -got
        half.state = HALF_BROKEN
    return 0


cdef int64_t _splice(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Bytes now in half.pipe; 0: none, or the scratch has to be asked (half.ask_recv)."""
    cdef int64_t got
    cdef Pipe *pipe = pipe_take(&pump.pipes)
    if pipe == NULL:
        half.ask_recv = True             # by copying, this time
        return 0
    got = pipe_fill(pipe, source.watch.fd, pump.splice_size)
    if got > 0:
        half.pipe = pipe
        # Less than a pipe is either all there was, or all that its slots could take: the next call tells, and that
        # might as well be a recv, which can tell "nothing" from an urgent mark.
        half.ask_recv = got < CONFIRM
        _choose_mode(half, sink, got, pump)
        return got
    pipe_give(&pump.pipes, pipe)
    if splice_refused(got):
        half.mode = MODE_REFUSED
        return 0
    if got < 0 and not net_would_block(got) and not net_out_of_resources(got):
        source.error = <int> -got       # a reset hides the bytes behind an urgent mark from splice, not from recv
    half.ask_recv = True
    return 0


cdef int half_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Moves bytes until one side would block, the budget is used up, or the direction has ended.

    Returns PUMP_ bits. A failure is left in source.error or sink.error, with half.state HALF_BROKEN.
    """
    cdef int result = PUMP_WAIT
    cdef int64_t got
    cdef uint32_t used = 0
    if pump.zero_copy == ZERO_COPY_ALWAYS and half.mode == MODE_COPY:
        half.mode = MODE_SPLICE
    while half.state < HALF_SHUT:
        if half.buffer.memory != NULL or half.pipe != NULL:
            if not sink.ready & READY_OUT:
                return result
            if half.buffer.memory != NULL:
                result |= _drain_buffer(half, sink, pump)
            else:
                result |= _drain_pipe(half, sink, pump)
        elif half.state == HALF_DRAINING:
            _pass_on_end(half, source, sink, pump)
            return result | PUMP_MOVED
        elif not source.ready & READY_IN:
            return result
        elif used >= pump.budget:
            return result | PUMP_MORE
        elif half.mode == MODE_SPLICE and not half.ask_recv:
            used += <uint32_t> _splice(half, source, sink, pump)
        else:
            half.ask_recv = False
            got = _recv(half, source, sink, pump)
            if got > 0:
                used += <uint32_t> got
                result |= PUMP_MOVED
                _deliver(half, sink, <uint32_t> got, pump)
            elif half.state == HALF_OPEN and source.ready & READY_IN:
                return result | PUMP_MORE       # bytes are there that cannot be had just now: meanwhile it is the others' turn
    return result


cdef void half_break(Half *half, Pump *pump) noexcept nogil:
    buffer_clear(&half.buffer)
    if half.pipe != NULL:
        _give_pipe(half, pump)
    if half.state != HALF_SHUT:
        half.state = HALF_BROKEN
