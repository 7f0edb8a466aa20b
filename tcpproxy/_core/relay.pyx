# One proxied connection: the states are in relay.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.connecting cimport CONNECTING_FAILED, connecting_event, connecting_free, connecting_has_more, \
    connecting_new, connecting_next, connecting_take
from tcpproxy._core.events cimport EVENT_END, EVENT_FAILED, EVENT_NEW, REASON_CLIENT_EOF, REASON_CLIENT_RESET, \
    REASON_CONNECT_TIMEOUT, REASON_DNS, REASON_HALF_CLOSE_TIMEOUT, REASON_IDLE, REASON_LIMIT, REASON_NONE, \
    REASON_REFUSED, REASON_SHUTDOWN, REASON_UNREACHABLE, REASON_UPSTREAM_EOF, REASON_UPSTREAM_RESET, EventRecord, \
    events_claim, events_publish
from tcpproxy._core.half cimport HALF_DRAINING, HALF_OPEN, HALF_SHUT, PUMP_MORE, PUMP_MOVED, half_break, half_pump
from tcpproxy._core.net cimport EADDRNOTAVAIL, ECONNREFUSED, ECONNRESET, ENOMEM, ETIMEDOUT, NET_NONE, net_close, \
    net_out_of_resources, net_keep_alive, net_peek, net_recv, net_reset, net_send, net_take_error, net_unsent, \
    net_unacked, net_would_block
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, WATCH_STREAM, \
    poller_add, poller_rearm, poller_remove
from tcpproxy._core.sources cimport sources_leave
from tcpproxy._core.sync cimport sync_bump, sync_store, sync_sub
from tcpproxy._core.table cimport table_new, table_release, table_tag
from tcpproxy._core.timers cimport TIMER_CLIENT_GONE, TIMER_CONNECT, TIMER_FLUSH, TIMER_HALF_CLOSE, TIMER_IDLE, \
    TIMER_LINGER, TIMER_NONE, TIMER_KEEPALIVE, TIMER_UNACKED, TIMER_STAGGER, TIMER_STUCK, timers_arm, timers_cancel

cdef enum:
    INTERACTIVE_SIZE = 16384           # bytes: more at once is no word of a conversation


cdef void _enqueue(Loop *loop, Relay *relay) noexcept nogil:
    if relay.queued:
        return
    relay.queued = True
    relay.next = NULL
    if loop.queue_last != NULL:
        loop.queue_last.next = relay
    else:
        loop.queue_first = relay
    loop.queue_last = relay


# --- the beginning: a client, then upstream's addresses, then a connection ---

cdef void relay_start(Loop *loop, net_socket fd, const net_addr *client, int target) noexcept nogil:
    """Takes over an accepted socket, counted in `active` already; its upstream is upstreams[target]."""
    cdef Relay *relay = table_new(&loop.table)
    cdef EventRecord *record
    if relay != NULL:
        relay.sides[CLIENT].watch.fd = fd
        relay.sides[CLIENT].watch.tag = table_tag(relay)
    if relay == NULL or poller_add(loop.pump.poller, &relay.sides[CLIENT].watch, WATCH_STREAM) < 0:
        sources_leave(loop.sources, client)
        relay_turn_away(loop, fd, client, ENOMEM)
        if relay != NULL:
            table_release(&loop.table, relay)
        return
    sync_bump(&loop.counters.accepted, 1)
    relay.sides[CLIENT].ready = READY_OUT
    relay.sides[CLIENT].no_delay = True          # inherited
    relay.sides[UPSTREAM].watch.fd = NET_NONE
    relay.client = client[0]
    relay.target = <uint8_t> target
    relay.accepted_ns = loop.now_ns
    relay.deadline.owner = relay.check.owner = relay
    relay.state = RELAY_RESOLVING
    record = events_claim(&loop.events, EVENT_NEW)
    if record != NULL:
        record.client = relay.client
        events_publish(&loop.events)
    timers_arm(&loop.timers, &relay.deadline, TIMER_CONNECT, loop.now_ns)
    _resolve(loop, relay)


cdef void relay_turn_away(Loop *loop, net_socket fd, const net_addr *client, int error) noexcept nogil:
    """No relay for it: no memory, or (`error` 0) its source has as many as it may. Counted in `active` so far."""
    cdef EventRecord *record = events_claim(&loop.events, EVENT_FAILED)
    if record != NULL:
        record.reason = REASON_LIMIT
        record.error = error
        record.client = client[0]
        events_publish(&loop.events)
    net_reset(fd)
    sync_bump(&loop.counters.refused, 1)
    sync_sub(&loop.counters.active, 1)


cdef void _resolve(Loop *loop, Relay *relay) noexcept nogil:
    """Connects with addresses that are fresh; else asks for new ones, once for all who wait."""
    cdef Upstream *upstream = &loop.upstreams[relay.target]
    cdef int64_t rung
    if upstream.list != NULL and upstream.list.count and loop.now_ns < upstream.list.expires_ns:
        _connect(loop, relay)
    elif not upstream.waiting:
        sync_store(&upstream.asked, 1)
        rung = net_send(loop.lookup_wakeup, <const char *> "n", 1)
        upstream.waiting = rung > 0 or net_would_block(rung)    # else, without memory, the next client rings again


cdef void relay_answered(Loop *loop, Relay *relay) noexcept nogil:
    """New addresses are there, even if none: whoever waited for them gets no others."""
    if relay.state == RELAY_RESOLVING:
        if loop.upstreams[relay.target].list.count:
            _connect(loop, relay)
        else:
            _fail(loop, relay, REASON_DNS, 0)


cdef void _connect(Loop *loop, Relay *relay) noexcept nogil:
    relay.connecting = connecting_new(loop.upstreams[relay.target].list, &loop.tuning)
    if relay.connecting == NULL:
        _fail(loop, relay, REASON_LIMIT, ENOMEM)
        return
    relay.state = RELAY_CONNECTING
    _next_attempt(loop, relay)


cdef void _next_attempt(Loop *loop, Relay *relay) noexcept nogil:
    if connecting_next(relay.connecting, loop.pump.poller, table_tag(relay)) == CONNECTING_FAILED:
        _fail(loop, relay, _failure(relay.connecting.error), relay.connecting.error)
    elif connecting_has_more(relay.connecting):
        timers_arm(&loop.timers, &relay.check, TIMER_STAGGER, loop.now_ns)
    else:
        timers_cancel(&loop.timers, &relay.check)


cdef uint8_t _failure(int error) noexcept nogil:
    if error == ECONNREFUSED:
        return REASON_REFUSED
    if error == ETIMEDOUT:
        return REASON_CONNECT_TIMEOUT
    if net_out_of_resources(-error) or error == EADDRNOTAVAIL:
        return REASON_LIMIT
    return REASON_UNREACHABLE


cdef void _connected(Loop *loop, Relay *relay, uint32_t number) noexcept nogil:
    cdef Side *upstream = &relay.sides[UPSTREAM]
    cdef uint32_t bits = relay.connecting.ready[number]
    connecting_take(relay.connecting, loop.pump.poller, number, &upstream.watch)
    relay.upstream = relay.connecting.list.addresses[number]
    relay.attempt = <uint8_t> (number + 1)
    upstream.error = relay.connecting.error
    upstream.ready = bits & (READY_IN | READY_OUT)
    upstream.read_to_eagain = bits & (READY_EOF | READY_URGENT) != 0
    _forget_attempts(loop, relay)
    relay.connected_ns = loop.now_ns
    relay.state = RELAY_RELAYING
    timers_arm(&loop.timers, &relay.check, TIMER_KEEPALIVE, loop.now_ns)
    timers_cancel(&loop.timers, &relay.deadline)
    _enqueue(loop, relay)


cdef void _forget_attempts(Loop *loop, Relay *relay) noexcept nogil:
    cdef Connecting *connecting = relay.connecting
    relay.connecting = NULL                     # before it is freed: see Worker.abandon
    connecting_free(connecting, loop.pump.poller)


# --- events and timers ---

cdef void relay_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil:
    """`number`: 0 for the client, n + 1 for connection attempt n."""
    cdef int won
    cdef Side *side = &relay.sides[CLIENT]
    if number != 0:
        if relay.state == RELAY_CONNECTING:
            won = connecting_event(relay.connecting, loop.pump.poller, number - 1, bits)
            if won >= 0:
                _connected(loop, relay, <uint32_t> won)
            elif won == CONNECTING_FAILED:
                _next_attempt(loop, relay)
            return
        if number != relay.attempt:
            return                              # an attempt that lost
        side = &relay.sides[UPSTREAM]
    side.ready |= bits & (READY_IN | READY_OUT)
    if bits & (READY_EOF | READY_URGENT):
        side.read_to_eagain = True
    if relay.state < RELAY_RELAYING:
        _client_left(loop, relay, bits)
        return
    if bits & READY_ERROR:
        side.error_pending = True
        _rearm_deadline(loop, relay, False)              # its last bytes may be stuck behind a peer that does not read
    _enqueue(loop, relay)


cdef void _client_left(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil:
    """An event of a client whose upstream is not there yet. Its bytes stay in the kernel until then."""
    cdef char byte
    cdef bint reset = bits & READY_ERROR != 0
    if not reset and not bits & READY_EOF:
        return
    if (net_peek(relay.sides[CLIENT].watch.fd, &byte, 1) > 0) == reset:
        # Closed without a byte: gone, or a half-close that waits for a banner. Reset behind some bytes: upstream would
        # have seen them. Both get a second for it; a request and a half-close have the whole time.
        relay.sides[CLIENT].error_pending |= reset
        if relay.deadline.kind == TIMER_CONNECT \
                and relay.deadline.due_ns > loop.now_ns + loop.timers.lists[TIMER_CLIENT_GONE].length_ns:
            timers_arm(&loop.timers, &relay.deadline, TIMER_CLIENT_GONE, loop.now_ns)
    elif reset:
        relay.reason = REASON_CLIENT_RESET
        _close(loop, relay, True)


cdef void relay_timer(Loop *loop, Relay *relay, int kind) noexcept nogil:
    if kind == TIMER_STAGGER:
        _next_attempt(loop, relay)
    elif kind == TIMER_FLUSH or kind == TIMER_STUCK:
        _reset_when_sent(loop, relay)
    elif kind == TIMER_KEEPALIVE:
        net_keep_alive(relay.sides[UPSTREAM].watch.fd, &loop.tuning)
        _check_unacked(loop, relay)
    elif kind == TIMER_UNACKED:
        _check_unacked(loop, relay)
    elif kind == TIMER_CLIENT_GONE:
        relay.reason = REASON_CLIENT_RESET if relay.sides[CLIENT].error_pending else REASON_CLIENT_EOF
        _close(loop, relay, True)
    elif kind == TIMER_CONNECT:
        if relay.state == RELAY_CONNECTING and relay.connecting.started:
            relay.connecting.last = relay.connecting.started - 1
        _fail(loop, relay, REASON_DNS if relay.state == RELAY_RESOLVING else REASON_CONNECT_TIMEOUT, ETIMEDOUT)
    elif _closing_progress(relay):
        timers_arm(&loop.timers, &relay.deadline, kind, loop.now_ns)
    elif kind == TIMER_IDLE or kind == TIMER_HALF_CLOSE:
        relay.reason = REASON_IDLE if kind == TIMER_IDLE else REASON_HALF_CLOSE_TIMEOUT
        _cut(loop, relay)
    else:                                       # TIMER_LINGER
        if relay.reason == REASON_NONE:
            relay.reason = REASON_CLIENT_RESET if relay.sides[CLIENT].error_pending else REASON_UPSTREAM_RESET
        _close(loop, relay, relay.state != RELAY_LINGERING)


cdef inline bint _error_pending(Relay *relay) noexcept nogil:
    return relay.sides[CLIENT].error_pending or relay.sides[UPSTREAM].error_pending


cdef int _unsent(Relay *relay, int number, bint *moves) noexcept nogil:
    """What the kernel has still to send to a side; sets `moves` if it has sent bytes since the last look."""
    cdef Side *side = &relay.sides[number]
    cdef int unsent = net_unsent(side.watch.fd) if side.watch.fd != NET_NONE else 0
    cdef uint32_t sent = <uint32_t> (relay.halves[1 - number].delivered - unsent)
    if unsent > 0 and sent != side.left_kernel:
        moves[0] = True
    side.left_kernel = sent
    return unsent


cdef bint _closing_progress(Relay *relay) noexcept nogil:
    """Do bytes cross a wire, although no socket has taken any for a while? A full one may hold 4 MiB, and says only when
    a third of it is free (Linux) that it takes more: a slow receiver may need longer for that than a time-out is."""
    cdef bint moves = False
    _unsent(relay, CLIENT, &moves)
    _unsent(relay, UPSTREAM, &moves)
    return moves


cdef void _linger(Loop *loop, Relay *relay) noexcept nogil:
    """Only last bytes are left to send. When none has gone for a while from now on, it is over."""
    _closing_progress(relay)
    timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)


cdef void _check_unacked(Loop *loop, Relay *relay) noexcept nogil:
    """Is a peer dead that has not taken all we sent? Looks again as long as something waits, or as soon as bytes move."""
    cdef int side, waits = 0, rc
    if relay.state != RELAY_RELAYING or _error_pending(relay) or not loop.timers.lists[TIMER_UNACKED].length_ns:
        return
    for side in range(2):
        rc = net_unacked(relay.sides[side].watch.fd, &loop.tuning, &relay.probes_at_ack[side])
        if rc < 0:
            relay.sides[side].error = -rc
            _after_turn(loop, relay)
            return
        waits |= rc
    if waits:
        timers_arm(&loop.timers, &relay.check, TIMER_UNACKED, loop.now_ns)


cdef void relay_abort(Loop *loop, Relay *relay) noexcept nogil:
    relay.reason = REASON_SHUTDOWN
    _close(loop, relay, True)


# --- relaying ---

cdef void relay_turn(Loop *loop, Relay *relay) noexcept nogil:
    cdef int moved
    relay.queued = False
    if relay.state == RELAY_RELAYING:
        moved = _pump(loop, relay)
        _after_turn(loop, relay)
        if relay.state == RELAY_RELAYING:
            if moved & PUMP_MORE:
                _enqueue(loop, relay)
            _rearm_deadline(loop, relay, moved & PUMP_MOVED != 0)
    elif relay.state == RELAY_RESETTING:
        _reset_when_sent(loop, relay)
    elif relay.state == RELAY_LINGERING:
        _drain_input(loop, relay)


cdef int _pump(Loop *loop, Relay *relay) noexcept nogil:
    cdef uint64_t up = relay.halves[CLIENT].delivered, down = relay.halves[UPSTREAM].delivered
    cdef Side *client = &relay.sides[CLIENT]
    cdef Side *upstream = &relay.sides[UPSTREAM]
    cdef int moved = half_pump(&relay.halves[CLIENT], client, upstream, &loop.pump)
    moved |= half_pump(&relay.halves[UPSTREAM], upstream, client, &loop.pump)
    if not loop.half_close and (client.eof_read or upstream.eof_read):
        # The first end closes both: what was read is still delivered, nothing more is read.
        _stop_reading(&relay.halves[CLIENT])
        _stop_reading(&relay.halves[UPSTREAM])
        moved |= half_pump(&relay.halves[CLIENT], client, upstream, &loop.pump)
        moved |= half_pump(&relay.halves[UPSTREAM], upstream, client, &loop.pump)
    up = relay.halves[CLIENT].delivered - up
    down = relay.halves[UPSTREAM].delivered - down
    sync_bump(&loop.counters.to_upstream, up)
    sync_bump(&loop.counters.to_client, down)
    _note_interactive(loop, relay, CLIENT, up)
    _note_interactive(loop, relay, UPSTREAM, down)
    return moved


cdef inline void _note_interactive(Loop *loop, Relay *relay, uint8_t side, uint64_t moved) noexcept nogil:
    """Is it a conversation? Then the sides take turns, and say little: someone waits for these bytes."""
    if moved and side != relay.last_sender:
        relay.last_sender = side
        if moved < INTERACTIVE_SIZE:
            loop.interactive = True


cdef inline void _stop_reading(Half *half) noexcept nogil:
    if half.state == HALF_OPEN:
        half.state = HALF_DRAINING


cdef void _after_turn(Loop *loop, Relay *relay) noexcept nogil:
    """After a turn: has a side ended or failed, and is the relay over?"""
    cdef int side
    if relay.reason == REASON_NONE:
        if relay.sides[CLIENT].eof_read:
            relay.reason = REASON_CLIENT_EOF
        elif relay.sides[UPSTREAM].eof_read:
            relay.reason = REASON_UPSTREAM_EOF
    for side in range(2):
        if relay.sides[side].error_pending and relay.sides[side].eof_read and not relay.sides[side].error:
            # Reset after its end of file: nobody reads it any more, so nothing else would tell.
            relay.sides[side].error = net_take_error(relay.sides[side].watch.fd) or ECONNRESET
        if relay.sides[side].error:
            _side_failed(loop, relay, side)
            if _pass_reset_on(loop, relay, side):
                return
    if relay.halves[CLIENT].state == HALF_SHUT and relay.halves[UPSTREAM].state == HALF_SHUT:
        if relay.sides[CLIENT].eof_read and relay.sides[UPSTREAM].eof_read:
            _close(loop, relay, False)
        else:
            relay.state = RELAY_LINGERING
            _linger(loop, relay)
            _drain_input(loop, relay)


cdef void _side_failed(Loop *loop, Relay *relay, int side) noexcept nogil:
    """The first failure of a relay is a reset (or the like) of one side. Nothing reaches that any more, but the kernel still
    has what it sent before, whether or not a send that failed told us too early."""
    if relay.reason == REASON_CLIENT_RESET or relay.reason == REASON_UPSTREAM_RESET:
        return
    relay.reason = REASON_CLIENT_RESET if side == CLIENT else REASON_UPSTREAM_RESET
    relay.error = relay.sides[side].error
    relay.sides[side].error_pending = True
    relay.sides[side].ready |= READY_IN
    half_break(&relay.halves[1 - side], &loop.pump)
    _enqueue(loop, relay)


cdef bint _pass_reset_on(Loop *loop, Relay *relay, int side) noexcept nogil:
    """Tells the peer of a side that has failed, behind the bytes that it sent before. True: the relay relays no more."""
    cdef Half *rest = &relay.halves[side]
    cdef Side *peer = &relay.sides[1 - side]
    if peer.error:
        _close(loop, relay, True)
        return True
    if rest.state < HALF_SHUT:
        if relay.sides[side].ready & READY_IN or rest.buffer.memory != NULL or rest.pipe != NULL:
            return False
        # All was read and delivered, and no error came of it: sending failed for a reason that the peer will never hear.
        half_break(rest, &loop.pump)
    if rest.state == HALF_SHUT and peer.eof_read:
        _close(loop, relay, False)              # the peer had said and probes_at_ack everything: it keeps its end of file
    else:
        relay.state = RELAY_RESETTING
        _drop(loop, &relay.sides[side], True)   # its peer may be alive, and need not wait for the other one
        timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)
        timers_arm(&loop.timers, &relay.check, TIMER_FLUSH, loop.now_ns)
        _reset_when_sent(loop, relay)
    return True


cdef void _reset_when_sent(Loop *loop, Relay *relay) noexcept nogil:
    """A reset destroys what the kernel has not sent yet; a direct connection would have delivered it. No event tells
    when it is gone, so this looks again every few milliseconds, as long as it gets less."""
    cdef int peer = UPSTREAM if relay.sides[CLIENT].error else CLIENT
    cdef bint moves = False
    if relay.sides[peer].error_pending or _unsent(relay, peer, &moves) <= 0:      # it was reset itself, or nothing waits
        _close(loop, relay, True)
    elif moves:
        timers_arm(&loop.timers, &relay.deadline, TIMER_LINGER, loop.now_ns)
        timers_arm(&loop.timers, &relay.check, TIMER_FLUSH, loop.now_ns)
    elif relay.check.kind == TIMER_NONE:
        timers_arm(&loop.timers, &relay.check, TIMER_STUCK, loop.now_ns)


cdef void _drain_input(Loop *loop, Relay *relay) noexcept nogil:
    """Reads away what a peer sends after both ends were passed on, until it ends too or its time is over."""
    cdef int side, _turn
    cdef int64_t got
    for side in range(2):
        for _turn in range(4):
            if relay.sides[side].eof_read or not relay.sides[side].ready & READY_IN:
                break
            got = net_recv(relay.sides[side].watch.fd, loop.pump.scratch, loop.pump.size)
            if net_would_block(got):
                relay.sides[side].ready &= ~READY_IN
                poller_rearm(loop.pump.poller, &relay.sides[side].watch, READY_IN)
            elif got <= 0:
                relay.sides[side].eof_read = True
        if not relay.sides[side].eof_read and relay.sides[side].ready & READY_IN:
            _enqueue(loop, relay)
    if relay.sides[CLIENT].eof_read and relay.sides[UPSTREAM].eof_read:
        _close(loop, relay, False)


cdef void _rearm_deadline(Loop *loop, Relay *relay, bint moved) noexcept nogil:
    """Keeps the deadline that applies to a relaying relay, from its last byte on."""
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
        _linger(loop, relay)
    elif moved or kind != relay.deadline.kind:
        timers_arm(&loop.timers, &relay.deadline, kind, loop.now_ns)


# --- the end ---

cdef void _fail(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil:
    """Upstream was not reached."""
    relay.reason = reason
    relay.error = error
    if relay.connecting != NULL:
        relay.upstream = relay.connecting.list.addresses[relay.connecting.last]
    sync_bump(&loop.counters.failed, 1)
    _report(loop, relay, EVENT_FAILED)
    _release(loop, relay, True, True)


cdef void _close(Loop *loop, Relay *relay, bint reset) noexcept nogil:
    """Ends a relay; `reset`: with RST to both sides, for a side that is dead already no more than a close."""
    _report(loop, relay, EVENT_END)
    _release(loop, relay, reset, reset)


cdef void _cut(Loop *loop, Relay *relay) noexcept nogil:
    """A time-out ends a relay: a stream that is cut ends with a reset, one that had its end of file keeps it."""
    _report(loop, relay, EVENT_END)
    _release(loop, relay, relay.halves[UPSTREAM].state != HALF_SHUT, relay.halves[CLIENT].state != HALF_SHUT)


cdef void _report(Loop *loop, Relay *relay, int kind) noexcept nogil:
    cdef EventRecord *record = events_claim(&loop.events, kind)
    if record == NULL:
        return
    record.reason = relay.reason
    record.error = relay.error
    record.to_upstream = relay.halves[CLIENT].delivered
    record.to_client = relay.halves[UPSTREAM].delivered
    record.duration_ns = loop.now_ns - relay.accepted_ns
    record.connect_ns = relay.connected_ns - relay.accepted_ns if relay.connected_ns else 0
    record.client = relay.client
    record.upstream = relay.upstream
    events_publish(&loop.events)


cdef void _drop(Loop *loop, Side *side, bint reset) noexcept nogil:
    cdef net_socket fd = side.watch.fd
    if fd == NET_NONE:
        return
    poller_remove(loop.pump.poller, &side.watch, WATCH_STREAM)
    side.watch.fd = NET_NONE                    # before somebody else may get the number: see Worker.abandon
    if reset:
        net_reset(fd)
    else:
        net_close(fd)


cdef void _release(Loop *loop, Relay *relay, bint reset_client, bint reset_upstream) noexcept nogil:
    cdef int side
    if relay.connecting != NULL:
        _forget_attempts(loop, relay)
    for side in range(2):
        half_break(&relay.halves[side], &loop.pump)
    _drop(loop, &relay.sides[CLIENT], reset_client)
    _drop(loop, &relay.sides[UPSTREAM], reset_upstream)
    timers_cancel(&loop.timers, &relay.deadline)
    timers_cancel(&loop.timers, &relay.check)
    relay.state = RELAY_CLOSED                    # events of this batch may still name it, and the run queue hold it
    relay.next_closed = loop.closed
    loop.closed = relay
    sources_leave(loop.sources, &relay.client)
    sync_bump(&loop.counters.ended, 1)
    sync_sub(&loop.counters.active, 1)
