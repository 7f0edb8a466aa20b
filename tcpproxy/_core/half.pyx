# One direction of a relay: states and flags are in half.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t
from tcpproxy._core.buffer cimport buffer_clear, buffer_drop, buffer_fill
from tcpproxy._core.net cimport ECONNRESET, NET_POLL_CLEARS_ERROR, net_out_of_resources, net_no_delay, net_recv, net_send, \
    net_shut_write, net_pacing_off, net_unread, net_would_block
from tcpproxy._core.poller cimport READY_IN, READY_OUT
from tcpproxy._core.shaper cimport SOURCE_EOF, SOURCE_FAILED, shaper_clear, shaper_end
from tcpproxy._core.splice cimport Pipe, pipe_drain, pipe_fill, pipe_give, pipe_read, pipe_take, splice_refused
from tcpproxy._core.sync cimport sync_bump
from tcpproxy._core.tap cimport TAP_DELIVERED, TAP_FIN, tap_claim, tap_commit, tap_note

cdef enum:
    # docs/decisions.md has the measurements: "Full reads before splicing", "A recv after a short splice".
    NO_ROOM = -1            # what _recv returns when the tap has no room
    MODE_READS = 2          # reads in a row that change the mode. With 4 a transfer of 1 MiB cost a third more CPU
    SMALLEST_MSS_BYTES = 536    # a first send of so many bytes fits one TCP segment, so Nagle's algorithm delays nothing of it
    LIKELY_EMPTIED_BYTES = 65536    # a splice of less has probably emptied the source. With 256 KiB 8 % of all bytes were copied


cdef int64_t _send(Half *half, Side *sink, const char *data, uint32_t size, Pump *pump) noexcept nogil:
    """Returns how many bytes the sink took. 0: it is full (READY_OUT is cleared), or has failed (sink.error)."""
    cdef int64_t sent
    if not sink.no_delay and (half.delivered or size > SMALLEST_MSS_BYTES):
        net_no_delay(sink.watch.fd)
        sink.no_delay = True
    sent = net_send(sink.watch.fd, data, size)
    if sent > 0:
        half.delivered += sent
        return sent
    if sent == 0 or net_would_block(sent):
        half_not_ready(sink, READY_OUT, pump)
    else:
        sink.error = <int> -sent
    return 0


# --- out ---

cdef inline void _tell_tap(Half *half, Side *source, uint8_t kind, Pump *pump) noexcept nogil:
    if pump.tap != NULL:
        tap_note(pump.tap, kind, pump.tap.id, source != pump.tap.client, half.delivered, NULL, 0)


cdef void _deliver(Half *half, Side *source, Side *sink, uint32_t size, Pump *pump) noexcept nogil:
    """Sends what the last recv has read, and buffers what the sink does not take."""
    cdef int64_t sent = _send(half, sink, pump.into, size, pump)
    if sent == <int64_t> size:
        _tell_tap(half, source, TAP_DELIVERED, pump)
    elif not sink.error:
        if buffer_fill(&half.buffer, pump.into + sent, <uint32_t> (size - sent)) < 0:
            sink.error = ENOMEM     # bytes are lost: nothing after them may be delivered
    if sink.error:
        half_break(half, pump)


cdef int half_drain_buffer(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Sends from the buffer. Returns PUMP_MOVED if the sink took any of it."""
    cdef int64_t sent = _send(half, sink, half.buffer.memory + half.buffer.start,
                              half.buffer.end - half.buffer.start, pump)
    if sent > 0:
        buffer_drop(&half.buffer, <uint32_t> sent)
        if half.buffer.memory == NULL:
            _tell_tap(half, source, TAP_DELIVERED, pump)
    if sink.error:
        half_break(half, pump)
    return PUMP_MOVED if sent > 0 else PUMP_WAIT


cdef void half_give_pipe(Half *half, Pump *pump) noexcept nogil:
    cdef Pipe *pipe = half.pipe
    half.pipe = NULL                    # before it may be freed: see resources_close_after_fork
    pipe_give(&pump.pipes, pipe)


cdef int _drain_pipe(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Sends from the pipe. Returns PUMP_MOVED if the sink took any of it."""
    cdef int64_t sent = pipe_drain(half.pipe, sink.watch.fd)
    cdef int result = PUMP_WAIT
    if sent > 0:
        half.delivered += sent
        sync_bump(&pump.spliced, sent)
        result = PUMP_MOVED
    elif sent == 0 or net_would_block(sent):
        half_not_ready(sink, READY_OUT, pump)
    elif splice_refused(sent):
        half.mode = MODE_REFUSED
        sent = pipe_read(half.pipe, pump.scratch, pump.size)
        if sent > 0:
            _deliver(half, source, sink, <uint32_t> sent, pump)
            result = PUMP_MOVED
        else:
            sink.error = ENOMEM         # the bytes in the pipe are lost: see _deliver
    else:
        sink.error = <int> -sent
    if sink.error:
        half_break(half, pump)
    elif half.pipe.held == 0:
        half_give_pipe(half, pump)
    return result


cdef void half_pass_on_end(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    cdef int rc = 0
    if not (source.eof_read and sink.eof_read and source.fin_sent):    # else the next close() sends FIN as well
        rc = net_shut_write(sink.watch.fd)
    if rc < 0:
        sink.error = -rc                # the sink would wait for the end of file for ever
        half_break(half, pump)
        return
    sink.fin_sent = True
    half.state = HALF_SHUT
    _tell_tap(half, source, TAP_FIN, pump)


# --- in ---

cdef void _choose_mode(Half *half, Side *sink, int64_t got, Pump *pump) noexcept nogil:
    """Splices after MODE_READS reads in a row that filled the scratch; copies again after as many small splices."""
    cdef bint for_other = got < SPLICE_WORTH_BYTES if half.mode == MODE_SPLICE else got == <int64_t> pump.size
    half.streak = half.streak + 1 if for_other else 0
    if half.streak < MODE_READS:
        return
    half.streak = 0
    if not sink.pacing_off:
        sink.pacing_off = True
        net_pacing_off(sink.watch.fd)
    if pump.zero_copy == ZERO_COPY_AUTO and half.mode != MODE_REFUSED:
        half.mode = MODE_SPLICE if half.mode == MODE_COPY else MODE_COPY


cdef int64_t _recv(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Reads into the scratch, or into the tap. Returns the number of bytes.

    0: none, and source.ready and half.state say why. NO_ROOM: the tap has none, and nothing was read.
    """
    cdef int64_t got
    if pump.tap != NULL:
        pump.into = tap_claim(pump.tap, pump.size)
        if pump.into == NULL:
            return NO_ROOM
    got = net_recv(source.watch.fd, pump.into, pump.size)
    if got > 0:
        if pump.tap != NULL:
            tap_commit(pump.tap, source != pump.tap.client, half.delivered, <uint32_t> got)
        # A read that does not fill the scratch buffer has emptied the socket: this saves the recv that would return "would
        # block". It does not hold at an urgent mark, where recv stops early, nor after an announced end, which no further
        # event reports.
        if got < <int64_t> pump.size and not source.read_to_eagain:
            half_not_ready(source, READY_IN, pump)
        _choose_mode(half, sink, got, pump)
        return got
    half_read_nothing(half, source, got, pump)
    return 0


cdef void half_read_nothing(Half *half, Side *source, int64_t got, Pump *pump) noexcept nogil:
    if got == 0 and source.error_pending and NET_POLL_CLEARS_ERROR:
        got = -ECONNRESET
    if got == 0:
        source.eof_read = True
        # A failed send has cleared the pending error: recv then returns 0 although the side was reset.
        _source_ended(half, source.error != 0, pump)
    elif net_would_block(got):
        # At an urgent mark recv may return EAGAIN with bytes unread, if a signal is pending (SIGSTOP). No event follows.
        if not source.read_to_eagain or net_unread(source.watch.fd) == 0:
            half_not_ready(source, READY_IN, pump)
    else:
        source.error = <int> -got
        _source_ended(half, True, pump)


cdef void _source_ended(Half *half, bint failed, Pump *pump) noexcept nogil:
    half.state = HALF_BROKEN if failed else HALF_DRAINING
    if half.shaper != NULL:
        shaper_end(half.shaper, SOURCE_FAILED if failed else SOURCE_EOF, pump.now_ns[0])
        half.state = HALF_DRAINING          # the bytes in the shaper come first


cdef int64_t _splice(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Reads into half.pipe. Returns the number of bytes; 0: none, and a recv has to confirm it (half.ask_recv)."""
    cdef int64_t got
    cdef Pipe *pipe = pipe_take(&pump.pipes)
    if pipe == NULL:
        half.ask_recv = True            # no pipe: copy, this time
        return 0
    got = pipe_fill(pipe, source.watch.fd, pump.splice_size)
    if got > 0:
        half.pipe = pipe
        # After less than LIKELY_EMPTIED_BYTES the source is probably empty. The next read is a recv, because splice cannot tell
        # an empty socket from an urgent mark.
        half.ask_recv = got < LIKELY_EMPTIED_BYTES
        _choose_mode(half, sink, got, pump)
        return got
    pipe_give(&pump.pipes, pipe)
    if splice_refused(got):
        half.mode = MODE_REFUSED
        return 0
    if got < 0 and not net_would_block(got) and not net_out_of_resources(got):
        source.error = <int> -got       # after a reset, recv still returns bytes after an urgent mark, and splice does not
    half.ask_recv = True
    return 0


# THE CONTRACT OF half_pump
#
# Moves bytes from `source` to `sink`, in order, none twice and none left out. It never blocks. It returns when one of them
# would block, when the budget is used up, or when this direction has ended.
#
#   Delivery     The pump sends at once the bytes that it has read. It keeps those that the sink does not take: in the buffer
#                (at most `size` bytes), or in the pipe (at most PIPE_BYTES).
#   Full sink    While it keeps bytes it does not read. So the source's receive queue fills, and TCP stops its peer:
#                back-pressure.
#   EOF          All bytes that were read are delivered first. Then shutdown() sends FIN to the sink, and the half is shut. The
#                other half goes on. If the other half is shut already, the next close() sends that FIN.
#   Read error   (a reset.) source.error is set, the half is broken. A half reads only when it keeps no bytes, so the kernel
#                already has all bytes from before the error. The relay resets the sink when the kernel has sent them
#                (closing.pyx).
#   Send error   sink.error is set, the half is broken, its kept bytes are dropped. The other half still delivers the bytes that
#                the sink sent before it failed; then the relay resets the source.
#   No memory    for bytes that the sink does not take: as a send error, with ENOMEM, because lost bytes must not be skipped.
#   Budget       At least `budget` bytes were read and the source may have more: returns PUMP_MORE. The last read may exceed the
#                budget: by the scratch buffer, or by one splice.
#   Tap          Bytes are recorded before they are sent. Without room in the tap nothing is read: returns PUMP_STALLED, and the
#                source stays readable.
#   Splice       Only with an empty pipe, so that "would block" can only mean the source. "Would block" and 0 are confirmed with
#                a recv, because at an urgent mark splice returns them with bytes unread. A refusal consumes nothing: the half
#                then copies until its end.
#
# Returning early loses no event. A ready bit is cleared only when a call would have blocked or a read has emptied the socket,
# and then the poller reports the next edge. In every other case the return value has PUMP_MORE or PUMP_STALLED, or the half has
# ended. half_pump of an ended half does nothing and returns PUMP_WAIT.
#
# A half with a shaper is pumped by shaped_pump (shaped.pxd).
#
# The caller is relay_turn, from the run queue. It calls again at the next event of either side; after PUMP_MORE without an
# event, when the other relays have had their turns. After each call _after_turn in relay.pyx decides by both sides' `error` and
# `eof_read` whether the relay ends; half.pxd has a table of the flags.
cdef int half_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil:
    """Returns PUMP_ bits. A failure is left in source.error or sink.error, with half.state HALF_BROKEN."""
    cdef int result = PUMP_WAIT
    cdef int64_t got
    cdef uint32_t used = 0
    while half.state < HALF_SHUT:
        if half.buffer.memory != NULL or half.pipe != NULL:
            if not sink.ready & READY_OUT:
                return result
            if half.buffer.memory != NULL:
                result |= half_drain_buffer(half, source, sink, pump)
            else:
                result |= _drain_pipe(half, source, sink, pump)
        elif half.state == HALF_DRAINING:
            half_pass_on_end(half, source, sink, pump)
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
            if got == NO_ROOM:
                return result | PUMP_STALLED
            if got > 0:
                used += <uint32_t> got
                result |= PUMP_MOVED
                _deliver(half, source, sink, <uint32_t> got, pump)
            elif half.state == HALF_OPEN and source.ready & READY_IN:
                return result | PUMP_MORE       # readable, but recv gave nothing (urgent mark, no memory): retry later
    return result


cdef void half_break(Half *half, Pump *pump) noexcept nogil:
    buffer_clear(&half.buffer)
    if half.shaper != NULL:
        shaper_clear(half.shaper)
    if half.pipe != NULL:
        half_give_pipe(half, pump)
    if half.state != HALF_SHUT:
        half.state = HALF_BROKEN
