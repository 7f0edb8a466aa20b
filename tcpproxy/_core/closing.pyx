# The end of a relay: the model is in closing.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from tcpproxy._core.buffer cimport buffer_clear
from tcpproxy._core.connecting cimport Connecting, connecting_free
from tcpproxy._core.events cimport REASON_CLIENT_RESET, REASON_FAULT, REASON_KILLED, REASON_LIMIT, REASON_SHUTDOWN, \
    REASON_UPSTREAM_RESET
from tcpproxy._core.half cimport HALF_SHUT, Half, Side, half_break, half_holds
from tcpproxy._core.inbox cimport Message
from tcpproxy._core.loop cimport CLIENT, LIFETIME_MOST_NS, LIFETIME_SHIFT, RELAY_CLOSED, RELAY_INTRODUCING, RELAY_LINGERING, \
    RELAY_RESETTING, RELAY_RELAYING, UPSTREAM, loop_bury, loop_enqueue, relay_shaping
from tcpproxy._core.metering cimport metering_end
from tcpproxy._core.net cimport ENOMEM, NET_NONE, net_close, net_recv, net_reset, net_shut_write, net_socket, \
    net_unsent, net_would_block
from tcpproxy._core.poller cimport READY_IN, WATCH_STREAM, poller_rearm, poller_remove
from tcpproxy._core.reports cimport reports_ended, reports_failed, reports_left, reports_refused
from tcpproxy._core.shaper cimport Shaping
from tcpproxy._core.shaping cimport shaping_free
from tcpproxy._core.sources cimport sources_leave
from tcpproxy._core.sync cimport sync_sub
from tcpproxy._core.tap cimport TAP_FIN, TAP_RST, tap_note
from tcpproxy._core.timers cimport TIMER_FLUSH, TIMER_LINGER, TIMER_NONE, TIMER_STUCK, alarms_cancel, timers_arm, \
    timers_cancel

cdef enum:
    # The most reads in one turn that discard the bytes of a lingering side. With a scratch buffer of 64 KiB they read as much
    # as a turn of the pump (TURN_LEAST_BYTES of half.pxd). A choice.
    DISCARDS_PER_TURN = 4


# --- progress of the last bytes ---

cdef int _unsent(Relay *relay, int side, bint *progress) noexcept nogil:
    """Bytes that the kernel has not sent to a side yet.

    Sets `progress` if some have left since the last call and some are still unsent.
    """
    cdef Half *half = &relay.halves[1 - side]
    cdef net_socket fd = relay.sides[side].watch.fd
    cdef int unsent = net_unsent(fd) if fd != NET_NONE else 0
    cdef uint32_t left = <uint32_t> (half.delivered - unsent)
    if unsent > 0 and left != half.left_kernel:
        progress[0] = True
    half.left_kernel = left
    return unsent


cdef bint closing_measure_progress(Relay *relay) noexcept nogil:
    """Stores how many bytes have left the kernel. True: more than at the last call, and some are still unsent.

    A full socket may hold 4 MiB, and is writable again only when a third of that is free (Linux). A slow receiver may need
    longer for a third than a time-out lasts.

    An empty send queue does not count as progress, even if it became empty just now: no slow receiver is left, and the time of
    the last byte is unknown. If it counted, a connection whose last bytes were delivered long ago would last for two
    time-outs, because the amounts are not stored when a time-out begins. (That would cost two calls a turn;
    closing_arm_linger does it, once.)
    """
    cdef bint progress = False
    _unsent(relay, CLIENT, &progress)
    _unsent(relay, UPSTREAM, &progress)
    return progress


cdef void closing_arm_linger(Loop *loop, Relay *relay) noexcept nogil:
    """Only queued bytes remain: the relay is closed when no byte has left the kernel for the length of TIMER_LINGER."""
    closing_measure_progress(relay)                     # stores the amounts from which progress is measured
    timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)


# --- a side has failed ---

cdef void closing_side_failed(Loop *loop, Relay *relay, int side) noexcept nogil:
    """The first failure of a side, mostly a reset, decides the reason of the relay; a second one changes nothing.

    Bytes that are queued for the failed side are dropped. Reading from it goes on: bytes that it sent before its RST may still
    be in our receive queue, even if a failed send has reported the reset.
    """
    if relay.reason == REASON_CLIENT_RESET or relay.reason == REASON_UPSTREAM_RESET:
        return
    relay.reason = REASON_CLIENT_RESET if side == CLIENT else REASON_UPSTREAM_RESET
    relay.error = relay.sides[side].error
    relay.sides[side].error_pending = True
    relay.sides[side].ready |= READY_IN
    half_break(&relay.halves[1 - side], &loop.pump)
    loop_enqueue(loop, relay)


cdef bint closing_pass_reset_on(Loop *loop, Relay *relay, int side) noexcept nogil:
    cdef Half *rest = &relay.halves[side]
    cdef Side *peer = &relay.sides[1 - side]
    if peer.error:
        closing_close(loop, relay, True)
        return True
    if rest.state < HALF_SHUT:
        if relay.sides[side].ready & READY_IN or half_holds(rest):
            return False
        # The receive queue is empty and recv reported no error: only our send has failed.
        half_break(rest, &loop.pump)
    if rest.state == HALF_SHUT and peer.eof_read:
        closing_close(loop, relay, False)       # both directions of the peer ended cleanly: close, do not reset
    else:
        _reset_peer_when_sent(loop, relay, side)
    return True


cdef void _reset_peer_when_sent(Loop *loop, Relay *relay, int side) noexcept nogil:
    relay.state = RELAY_RESETTING
    _close_side(loop, relay, side, True)        # at once: it may be alive, and the other side slow
    timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)
    timers_arm(&loop.timers, &relay.check, TIMER_FLUSH, loop.now_ns)
    closing_reset_when_sent(loop, relay)


cdef void closing_reset_when_sent(Loop *loop, Relay *relay) noexcept nogil:
    """Resets the remaining side when its send queue is empty, because RST destroys bytes that the kernel has not sent yet.

    A UNIX socket is closed at once: its peer already has all bytes. No event reports an empty send queue, so this checks it
    every TIMER_FLUSH while it shrinks, and every TIMER_STUCK while it does not. While the direction from the failed side is
    paused, the reset waits, too.
    """
    cdef int peer = UPSTREAM if relay.sides[CLIENT].watch.fd == NET_NONE else CLIENT
    cdef bint progress = False
    if loop.paused & (1 << (1 - peer)):
        timers_arm(&loop.timers, &relay.check, TIMER_STUCK, loop.now_ns)
    elif relay.sides[peer].error_pending or relay.sides[peer].is_unix or _unsent(relay, peer, &progress) <= 0:
        closing_close(loop, relay, True)
    elif progress:
        timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)
        timers_arm(&loop.timers, &relay.check, TIMER_FLUSH, loop.now_ns)
    elif relay.check.kind == TIMER_NONE:
        timers_arm(&loop.timers, &relay.check, TIMER_STUCK, loop.now_ns)


# --- a fault ends it ---

cdef void closing_cut(Loop *loop, Relay *relay, int side, bint reset, bint flush) noexcept nogil:
    relay.reason = REASON_FAULT
    relay.error = 0
    if not reset:
        _end_by_fin(loop, relay)
    elif flush and relay.state == RELAY_RELAYING:
        half_break(&relay.halves[1 - side], &loop.pump)     # nothing more for `side`, which is reset at once
        half_break(&relay.halves[side], &loop.pump)
        _reset_peer_when_sent(loop, relay, side)
    else:
        closing_close(loop, relay, True)


# --- both directions have ended ---

cdef void closing_linger(Loop *loop, Relay *relay) noexcept nogil:
    """A peer still sends after it has got our FIN. Closing with unread input would send RST and destroy its queued bytes."""
    relay.state = RELAY_LINGERING
    closing_arm_linger(loop, relay)
    closing_drain_input(loop, relay)


cdef void closing_drain_input(Loop *loop, Relay *relay) noexcept nogil:
    """Reads and discards the bytes of the peers, until both have ended or TIMER_LINGER fires."""
    cdef int side
    for side in range(2):
        _discard(loop, &relay.sides[side])
        if not relay.sides[side].eof_read and relay.sides[side].ready & READY_IN:
            loop_enqueue(loop, relay)
    if relay.sides[CLIENT].eof_read and relay.sides[UPSTREAM].eof_read:
        closing_close(loop, relay, False)


cdef void _discard(Loop *loop, Side *side) noexcept nogil:
    cdef int64_t got
    cdef int _read
    for _read in range(DISCARDS_PER_TURN):
        if side.eof_read or not side.ready & READY_IN:
            return
        got = net_recv(side.watch.fd, loop.pump.scratch, loop.pump.size)
        if net_would_block(got):
            side.ready &= ~READY_IN
            poller_rearm(loop.pump.poller, &side.watch, READY_IN)
        elif got <= 0:
            side.eof_read = True


# --- the end ---

cdef void closing_connect_failed(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil:
    relay.reason = reason
    relay.error = error
    if relay.connecting != NULL and relay.connecting.list != NULL:
        relay.upstream = relay.connecting.list.addresses[relay.connecting.last]
    _release(loop, relay, True, True)
    reports_failed(loop, relay)


cdef void closing_close(Loop *loop, Relay *relay, bint reset) noexcept nogil:
    _release(loop, relay, reset, reset)
    if not relay.killed:
        reports_ended(loop, relay)


cdef void closing_timeout(Loop *loop, Relay *relay, uint8_t reason) noexcept nogil:
    """Resets a side that has got no FIN, because a FIN now would make a partial answer look complete. Closes the other one."""
    relay.reason = reason
    _release(loop, relay, relay.halves[UPSTREAM].state != HALF_SHUT, relay.halves[CLIENT].state != HALF_SHUT)
    reports_ended(loop, relay)


cdef void closing_out_of_memory(Loop *loop, Relay *relay) noexcept nogil:
    relay.reason = REASON_LIMIT
    relay.error = ENOMEM
    closing_close(loop, relay, True)


cdef void closing_abort(Loop *loop, Relay *relay) noexcept nogil:
    if relay.state == RELAY_INTRODUCING:
        closing_refuse(loop, relay, REASON_SHUTDOWN, 0, NULL)
        return
    relay.reason = REASON_SHUTDOWN
    closing_close(loop, relay, True)


cdef void closing_refuse(Loop *loop, Relay *relay, uint8_t reason, int error, Refusal *more) noexcept nogil:
    cdef Message accepted
    cdef Refusal refusal
    if more == NULL:
        memset(&refusal, 0, sizeof(refusal))
        more = &refusal
    if relay.origin != NULL:
        more.via = relay.origin.via
    accepted.id = relay.id
    accepted.client = relay.client
    accepted.target = relay.target
    accepted.fd = relay.sides[CLIENT].watch.fd
    sync_sub(&loop.counters.active, 1)          # before the report, so that a reader of the report finds the new count
    reports_refused(loop, &accepted, reason, error, more)
    _forget(loop, relay)


cdef void closing_leave(Loop *loop, Relay *relay, uint8_t reason) noexcept nogil:
    sync_sub(&loop.counters.active, 1)
    reports_left(loop, relay.target, reason)
    _forget(loop, relay)


cdef void _forget(Loop *loop, Relay *relay) noexcept nogil:
    """Resets the client. The slot stays: see _release."""
    cdef Side *client = &relay.sides[CLIENT]
    cdef net_socket fd = client.watch.fd
    poller_remove(loop.pump.poller, &client.watch, WATCH_STREAM)
    client.watch.fd = NET_NONE                  # before the number can be used again: see resources_close_after_fork
    net_reset(fd)
    timers_cancel(&loop.timers, &relay.deadline)
    buffer_clear(&relay.halves[CLIENT].buffer)
    free(relay.origin)
    relay.origin = NULL
    relay.state = RELAY_CLOSED
    loop_bury(loop, relay)


cdef void closing_kill(Loop *loop, Relay *relay, bint reset) noexcept nogil:
    """Ends a relay on request, and reports that. Its undelivered bytes are dropped."""
    relay.reason = REASON_KILLED
    relay.error = 0
    if reset or relay.state == RELAY_RESETTING:
        closing_close(loop, relay, True)
    else:
        _end_by_fin(loop, relay)


cdef void _end_by_fin(Loop *loop, Relay *relay) noexcept nogil:
    """Sends FIN to both sides. The relay then lingers, because closing with unread input would send RST. Its end is reported
    before that, so that a caller that waits for it does not wait for a peer.
    """
    _finish_both(loop, relay)
    metering_end(loop, relay)
    _uncount(loop, relay)
    relay.killed = True
    reports_ended(loop, relay)
    loop.lingering += 1
    relay.state = RELAY_LINGERING
    closing_arm_linger(loop, relay)
    loop_enqueue(loop, relay)


cdef void _finish_both(Loop *loop, Relay *relay) noexcept nogil:
    """Sends FIN to both sides. Bytes that the relay still holds are dropped."""
    cdef int side
    if relay.connecting != NULL:
        closing_forget_attempts(loop, relay)
    for side in range(2):
        half_break(&relay.halves[side], &loop.pump)
        _send_fin(loop, relay, side)
    timers_cancel(&loop.timers, &relay.check)


cdef void _send_fin(Loop *loop, Relay *relay, int number) noexcept nogil:
    """Sends FIN to a side that has got none. Resets the side if that fails."""
    cdef Side *side = &relay.sides[number]
    if side.watch.fd != NET_NONE and not side.fin_sent:
        if net_shut_write(side.watch.fd) < 0:
            _close_side(loop, relay, number, True)
        else:
            side.fin_sent = True
            if loop.pump.tap != NULL and relay.connected_ns:
                tap_note(loop.pump.tap, TAP_FIN, relay.id, <uint8_t> (1 - number), relay.halves[1 - number].delivered, NULL, 0)
    if side.watch.fd == NET_NONE:
        side.eof_read = True                    # nothing more to read from it


cdef void closing_forget_attempts(Loop *loop, Relay *relay) noexcept nogil:
    cdef Connecting *connecting = relay.connecting
    relay.connecting = NULL                     # before it is freed: see resources_close_after_fork
    if connecting.share.owner != NULL:
        alarms_cancel(&loop.timers, &connecting.share)
    connecting_free(connecting, loop.pump.poller)


cdef void _close_side(Loop *loop, Relay *relay, int number, bint reset) noexcept nogil:
    cdef Side *side = &relay.sides[number]
    cdef net_socket fd = side.watch.fd
    if fd == NET_NONE:
        return
    if loop.pump.tap != NULL and reset and relay.connected_ns and not relay.killed:
        tap_note(loop.pump.tap, TAP_RST, relay.id, <uint8_t> (1 - number), relay.halves[1 - number].delivered, NULL, 0)
    poller_remove(loop.pump.poller, &side.watch, WATCH_STREAM)
    side.watch.fd = NET_NONE                    # before the number can be used again: see resources_close_after_fork
    if reset:
        net_reset(fd)
    else:
        net_close(fd)


cdef void _release(Loop *loop, Relay *relay, bint reset_client, bint reset_upstream) noexcept nogil:
    """Closes the sockets of the relay and frees its memory. The slot stays: events of this batch and the run queue may refer to
    it.

    To be called before the end is reported. A reader of the report then finds that the connection is no longer counted, neither
    in `active` nor for its source, and that both peers have their FIN or RST.
    """
    cdef Shaping *shaping = relay_shaping(relay)
    cdef int side
    if relay.connecting != NULL:
        closing_forget_attempts(loop, relay)
    for side in range(2):
        half_break(&relay.halves[side], &loop.pump)
        relay.halves[side].shaper = NULL
    if shaping != NULL:
        alarms_cancel(&loop.timers, &shaping.alarm)
        shaping_free(shaping)
    if loop.metered:
        metering_end(loop, relay)
    _close_side(loop, relay, CLIENT, reset_client)
    _close_side(loop, relay, UPSTREAM, reset_upstream)
    timers_cancel(&loop.timers, &relay.deadline)
    timers_cancel(&loop.timers, &relay.check)
    relay.state = RELAY_CLOSED
    loop_bury(loop, relay)
    if relay.killed:
        loop.lingering -= 1
    else:
        _uncount(loop, relay)


cdef inline void _uncount(Loop *loop, Relay *relay) noexcept nogil:
    cdef int64_t lived_ns = <int64_t> min(loop.now_ns - relay.accepted_ns, <uint64_t> LIFETIME_MOST_NS)
    loop.accepting.lifetime_ns += (lived_ns - loop.accepting.lifetime_ns) >> LIFETIME_SHIFT
    sources_leave(&loop.group.sources, &relay.client)
    sync_sub(&loop.counters.active, 1)
