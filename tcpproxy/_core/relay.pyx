# One proxied connection while it relays: the model is in relay.pxd.
from libc.limits cimport INT_MAX
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.bending cimport bending_alarm, bending_go_on
from tcpproxy._core.closing cimport closing_arm_linger, closing_close, closing_drain_input, closing_linger, \
    closing_pass_reset_on, closing_measure_progress, closing_reset_when_sent, closing_side_failed, closing_timeout
from tcpproxy._core.events cimport REASON_CLIENT_EOF, REASON_CLIENT_RESET, REASON_HALF_CLOSE_TIMEOUT, REASON_IDLE, \
    REASON_NONE, REASON_UPSTREAM_EOF, REASON_UPSTREAM_RESET
from tcpproxy._core.half cimport HALF_DRAINING, HALF_OPEN, HALF_SHUT, PUMP_MORE, PUMP_MOVED, PUMP_SHAPED, PUMP_STALLED, \
    PUMP_WAIT, Half, Side, half_pump
from tcpproxy._core.introducing cimport introducing_timed_out
from tcpproxy._core.loop cimport CLIENT, QUEUED_NOT, QUEUED_STALLED, QUEUED_TURN, RELAY_CONNECTING, RELAY_GREETING, \
    RELAY_LINGERING, RELAY_RELAYING, RELAY_RESETTING, RELAY_RESOLVING, UPSTREAM, loop_enqueue, loop_stall, relays_pop
from tcpproxy._core.metering cimport metering_pump, metering_waits
from tcpproxy._core.net cimport ECONNRESET, net_keep_alive, net_take_error, net_unacked
from tcpproxy._core.opening cimport opening_attempt_event, opening_event, opening_next_attempt, \
    opening_share_over, opening_timed_out, opening_turn
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, poller_wait_turns
from tcpproxy._core.shaped cimport shaped_pump
from tcpproxy._core.shaper cimport shaper_holds, shaper_waits
from tcpproxy._core.sync cimport sync_bump, sync_peek
from tcpproxy._core.timers cimport TIMER_CONNECT, TIMER_FLUSH, TIMER_HALF_CLOSE, TIMER_HEADER, TIMER_IDLE, TIMER_KEEPALIVE, \
    TIMER_LINGER, TIMER_NONE, TIMER_RATE, TIMER_RETRY, TIMER_SHAPER, TIMER_SHARE, TIMER_STAGGER, TIMER_STUCK, TIMER_UNACKED, \
    timers_arm, timers_cancel

cdef enum:
    # Bytes that one side sends in a turn: fewer are interactive, more are bulk. A choice, not a measurement, of the size of
    # BULK_BATCH_BYTES in bulk.pyx. When any small read counted, eight streams always had some.
    INTERACTIVE_BELOW_BYTES = 16384


# --- events and timers ---

cdef void relay_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil:
    """`number`: the socket in the event's tag, 0 for the client, n + 1 for connection attempt n. `bits`: READY_ bits."""
    cdef Side *side = &relay.sides[CLIENT]
    if number != 0:
        if relay.state == RELAY_CONNECTING:
            opening_attempt_event(loop, relay, number - 1, bits)
            return
        if number != relay.attempt:
            return                              # an attempt that has lost
        side = &relay.sides[UPSTREAM]
    side.ready |= bits & (READY_IN | READY_OUT)
    if bits & (READY_EOF | READY_URGENT):
        side.read_to_eagain = True
    if relay.state < RELAY_RELAYING:
        opening_event(loop, relay, number, bits)
        return
    if bits & READY_ERROR:
        side.error_pending = True
        _rearm_deadline(loop, relay, False)     # linger: the other side may never take the bytes before the error
    loop_enqueue(loop, relay)


cdef void relay_timer(Loop *loop, Relay *relay, int kind) noexcept nogil:
    if kind == TIMER_STAGGER or kind == TIMER_RETRY:
        opening_next_attempt(loop, relay)
    elif kind == TIMER_CONNECT:
        opening_timed_out(loop, relay)
    elif kind == TIMER_SHARE:
        opening_share_over(loop, relay)
    elif kind == TIMER_RATE:
        if relay.state == RELAY_RELAYING:
            loop_enqueue(loop, relay)
    elif kind == TIMER_HEADER:
        introducing_timed_out(loop, relay)
    elif kind == TIMER_SHAPER:
        bending_alarm(loop, relay)
    elif kind == TIMER_FLUSH or kind == TIMER_STUCK:
        closing_reset_when_sent(loop, relay)
    elif kind == TIMER_KEEPALIVE or kind == TIMER_UNACKED:
        if kind == TIMER_KEEPALIVE and not relay.sides[UPSTREAM].is_unix:
            net_keep_alive(relay.sides[UPSTREAM].watch.fd, &loop.tuning)
        _check_unacked(loop, relay)
    else:
        _inactive(loop, relay, kind)


cdef void _inactive(Loop *loop, Relay *relay, int kind) noexcept nogil:
    """TIMER_IDLE, TIMER_HALF_CLOSE or TIMER_LINGER: no byte has moved for that long."""
    # Bytes of a relay that is stalled, paused, or has a turn coming, in a shaper, or delayed by a rate wait for us, not for a
    # peer.
    if relay.queued == QUEUED_STALLED or metering_waits(relay) \
            or (relay.state != RELAY_LINGERING and (loop.paused or relay.queued == QUEUED_TURN)) \
            or _shaper_waits(relay) or closing_measure_progress(relay):
        timers_arm(&loop.timers, &relay.deadline, kind, loop.now_ns)
    elif kind == TIMER_IDLE:
        closing_timeout(loop, relay, REASON_IDLE)
    elif kind == TIMER_HALF_CLOSE:
        closing_timeout(loop, relay, REASON_HALF_CLOSE_TIMEOUT)
    else:
        if relay.reason == REASON_NONE:
            relay.reason = REASON_CLIENT_RESET if relay.sides[CLIENT].error_pending else REASON_UPSTREAM_RESET
        closing_close(loop, relay, relay.state != RELAY_LINGERING)


cdef bint _shaper_waits(const Relay *relay) noexcept nogil:
    cdef const Half *half
    cdef int side
    for side in range(2):
        half = &relay.halves[side]
        if half.shaper != NULL and half.buffer.memory == NULL and shaper_waits(half.shaper):
            return True
    return False


cdef inline bint _error_pending(Relay *relay) noexcept nogil:
    return relay.sides[CLIENT].error_pending or relay.sides[UPSTREAM].error_pending


cdef void _check_unacked(Loop *loop, Relay *relay) noexcept nogil:
    """Checks for a dead peer while bytes are unacknowledged, every keepalive interval."""
    cdef int side, unacked = 0, rc
    if relay.state != RELAY_RELAYING or _error_pending(relay) or not loop.timers.lists[TIMER_UNACKED].length_ns:
        return
    for side in range(2):
        if relay.sides[side].is_unix:
            continue                            # the kernel knows when that peer is gone
        rc = net_unacked(relay.sides[side].watch.fd, &loop.tuning, &relay.sides[side].probes_at_ack)
        if rc < 0:
            relay.sides[side].error = -rc
            _after_turn(loop, relay)
            return
        unacked |= rc
    if unacked:
        timers_arm(&loop.timers, &relay.check, TIMER_UNACKED, loop.now_ns)


cdef void _rearm_deadline(Loop *loop, Relay *relay, bint moved) noexcept nogil:
    """Arms the deadline that applies to a relaying relay. `moved`: bytes have moved, so that it starts anew."""
    cdef int kind = TIMER_NONE
    cdef bint idle = loop.timers.lists[TIMER_IDLE].length_ns != 0
    if _error_pending(relay):
        kind = TIMER_LINGER
    elif relay.halves[CLIENT].state == HALF_SHUT or relay.halves[UPSTREAM].state == HALF_SHUT:
        kind = TIMER_HALF_CLOSE if loop.half_close else TIMER_LINGER
        if idle and loop.timers.lists[TIMER_IDLE].length_ns < loop.timers.lists[kind].length_ns:
            kind = TIMER_IDLE
    elif idle:
        kind = TIMER_IDLE
    if moved and relay.check.kind == TIMER_NONE and loop.timers.lists[TIMER_UNACKED].length_ns:
        timers_arm(&loop.timers, &relay.check, TIMER_UNACKED, loop.now_ns)
    if kind == TIMER_NONE:
        timers_cancel(&loop.timers, &relay.deadline)
    elif kind == TIMER_LINGER and kind != relay.deadline.kind:
        closing_arm_linger(loop, relay)
    elif moved or kind != relay.deadline.kind:
        timers_arm(&loop.timers, &relay.deadline, kind, loop.now_ns)


# --- a turn ---

cdef void relay_turn(Loop *loop, Relay *relay) noexcept nogil:
    cdef int moved
    if relay.state == RELAY_RELAYING:
        moved = _pump(loop, relay)
        if moved & PUMP_SHAPED and not bending_go_on(loop, relay):
            return
        _after_turn(loop, relay)
        if relay.state == RELAY_RELAYING:
            if moved & PUMP_STALLED:
                loop_stall(loop, relay)
            elif moved & PUMP_MORE:
                loop_enqueue(loop, relay)
            if moved & PUMP_MOVED:
                relay.moved_ns = loop.now_ns
            _rearm_deadline(loop, relay, moved & PUMP_MOVED != 0)
    elif relay.state == RELAY_RESETTING:
        closing_reset_when_sent(loop, relay)
    elif RELAY_RESOLVING <= relay.state <= RELAY_GREETING:
        opening_turn(loop, relay)
    elif relay.state == RELAY_LINGERING:
        closing_drain_input(loop, relay)


cdef void relay_turns_of_bulk(Loop *loop, int others) noexcept nogil:
    cdef int turns = max(others, poller_wait_turns(loop.pump.poller)) if loop.beside_interactive else INT_MAX
    cdef Relay *last = loop.bulk_queue.last
    cdef Relay *relay = NULL
    while relay != last and turns > 0:
        relay = relays_pop(&loop.bulk_queue)
        relay.queued = QUEUED_NOT       # before the turn, which may ask for another one
        relay_turn(loop, relay)
        turns -= 1


cdef inline int _pump_half(Loop *loop, Relay *relay, int side) noexcept nogil:
    """Pumps what a side sends, unless that is paused."""
    if relay.halves[side].shaper != NULL:
        if loop.paused & (1 << side):
            return PUMP_SHAPED
        return shaped_pump(&relay.halves[side], &relay.sides[side], &relay.sides[1 - side], &loop.pump) | PUMP_SHAPED
    if loop.paused & (1 << side):
        return PUMP_WAIT
    return half_pump(&relay.halves[side], &relay.sides[side], &relay.sides[1 - side], &loop.pump)


cdef int _pump_metered(Loop *loop, Relay *relay) noexcept nogil:
    cdef int moved = metering_pump(loop, relay, CLIENT)
    return moved | metering_pump(loop, relay, UPSTREAM)


cdef int _pump(Loop *loop, Relay *relay) noexcept nogil:
    """Pumps both halves. Returns PUMP_ bits."""
    cdef uint64_t up = relay.halves[CLIENT].delivered, down = relay.halves[UPSTREAM].delivered
    cdef uint64_t spliced = sync_peek(&loop.pump.spliced)
    cdef Side *client = &relay.sides[CLIENT]
    cdef int moved
    if loop.pump.tap != NULL:
        loop.pump.tap.id = relay.id
        loop.pump.tap.client = client
    if loop.metered:
        moved = _pump_metered(loop, relay)
    else:
        moved = _pump_half(loop, relay, CLIENT)
        moved |= _pump_half(loop, relay, UPSTREAM)
    if not loop.half_close and (_has_ended(relay, CLIENT) or _has_ended(relay, UPSTREAM)):
        # --half-close-timeout 0: the first EOF closes both directions. Bytes that were read are still delivered.
        _stop_reading(&relay.halves[CLIENT])
        _stop_reading(&relay.halves[UPSTREAM])
        if loop.metered:
            moved |= _pump_metered(loop, relay)
        else:
            moved |= _pump_half(loop, relay, CLIENT)
            moved |= _pump_half(loop, relay, UPSTREAM)
    up = relay.halves[CLIENT].delivered - up
    down = relay.halves[UPSTREAM].delivered - down
    sync_bump(&loop.counters.to_upstream, up)
    sync_bump(&loop.counters.to_client, down)
    if loop.by_target != NULL:
        sync_bump(&loop.by_target[relay.target].to_upstream, up)
        sync_bump(&loop.by_target[relay.target].to_client, down)
        sync_bump(&loop.by_target[relay.target].spliced, sync_peek(&loop.pump.spliced) - spliced)
    if loop.beside_interactive and (up or down):
        relay.bulk = up >= INTERACTIVE_BELOW_BYTES or down >= INTERACTIVE_BELOW_BYTES
    _note_interactive(loop, relay, CLIENT, up)
    _note_interactive(loop, relay, UPSTREAM, down)
    return moved


cdef inline bint _has_ended(const Relay *relay, int side) noexcept nogil:
    return relay.sides[side].eof_read and (relay.halves[side].shaper == NULL or not shaper_holds(relay.halves[side].shaper))


cdef inline void _note_interactive(Loop *loop, Relay *relay, uint8_t side, uint64_t moved) noexcept nogil:
    """Notes interactive traffic: the sides alternate with small writes, so that a peer waits for each of them."""
    if moved and side != relay.last_sender:
        relay.last_sender = side
        if moved < INTERACTIVE_BELOW_BYTES:
            loop.interactive = True


cdef inline void _stop_reading(Half *half) noexcept nogil:
    if half.state == HALF_OPEN:
        half.state = HALF_DRAINING


cdef void _after_turn(Loop *loop, Relay *relay) noexcept nogil:
    """Sets the reason, passes a reset on, or ends the relay, depending on the state of its sides after the turn."""
    cdef int side
    if relay.reason == REASON_NONE:
        if relay.sides[CLIENT].eof_read:
            relay.reason = REASON_CLIENT_EOF
        elif relay.sides[UPSTREAM].eof_read:
            relay.reason = REASON_UPSTREAM_EOF
    for side in range(2):
        if relay.sides[side].error_pending and relay.sides[side].eof_read and not relay.sides[side].error:
            # An RST after its FIN: nothing reads from this side any more, so nothing else would report the reset.
            relay.sides[side].error = net_take_error(relay.sides[side].watch.fd) or ECONNRESET
        if relay.sides[side].error:
            closing_side_failed(loop, relay, side)
            if closing_pass_reset_on(loop, relay, side):
                return
    if relay.halves[CLIENT].state == HALF_SHUT and relay.halves[UPSTREAM].state == HALF_SHUT:
        if relay.sides[CLIENT].eof_read and relay.sides[UPSTREAM].eof_read:
            closing_close(loop, relay, False)
        else:
            closing_linger(loop, relay)
