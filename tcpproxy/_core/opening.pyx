# The beginning of a relay: the model is in opening.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t
from tcpproxy._core.bending cimport bending_begin, bending_go_on, bending_has, bending_may_dial, bending_waits
from tcpproxy._core.closing cimport closing_close, closing_connect_failed, closing_forget_attempts
from tcpproxy._core.connecting cimport CONNECTING_FAILED, connecting_event, connecting_has_more, connecting_new, \
    connecting_next, connecting_take
from tcpproxy._core.events cimport REASON_CLIENT_RESET, REASON_CONNECT_TIMEOUT, REASON_DNS, REASON_LIMIT, \
    REASON_REFUSED, REASON_UNREACHABLE
from tcpproxy._core.half cimport MODE_SPLICE, ZERO_COPY_ALWAYS, Side
from tcpproxy._core.loop cimport CLIENT, RELAY_CONNECTING, RELAY_RELAYING, RELAY_RESOLVING, UPSTREAM, Upstream, \
    loop_enqueue
from tcpproxy._core.net cimport EADDRNOTAVAIL, ECONNREFUSED, ENOENT, ENOMEM, ETIMEDOUT, NET_NONE, net_addr, net_is_unix, \
    net_out_of_resources, net_peek, net_reset, net_send, net_would_block
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, WATCH_STREAM, poller_add
from tcpproxy._core.reports cimport reports_accepted, reports_connected, reports_refused
from tcpproxy._core.sources cimport sources_leave
from tcpproxy._core.sync cimport sync_store, sync_sub
from tcpproxy._core.table cimport table_new, table_release, table_tag
from tcpproxy._core.timers cimport TIMER_CONNECT, TIMER_KEEPALIVE, TIMER_RETRY, TIMER_STAGGER, timers_arm, timers_cancel


# --- a client ---

cdef void opening_start(Loop *loop, const Message *accepted) noexcept nogil:
    cdef Relay *relay = table_new(&loop.table)
    if relay != NULL:
        relay.sides[CLIENT].watch.fd = accepted.fd
        relay.sides[CLIENT].watch.tag = table_tag(relay)
    if relay == NULL or poller_add(loop.pump.poller, &relay.sides[CLIENT].watch, WATCH_STREAM) < 0:
        sources_leave(&loop.group.sources, &accepted.client)
        opening_turn_away(loop, accepted, REASON_LIMIT, ENOMEM)
        if relay != NULL:
            table_release(&loop.table, relay)
        return
    relay.sides[CLIENT].ready = READY_OUT
    relay.sides[CLIENT].no_delay = True         # inherited from the listener
    relay.sides[CLIENT].pacing_off = net_is_unix(&accepted.client)
    relay.sides[UPSTREAM].watch.fd = NET_NONE
    if loop.pump.zero_copy == ZERO_COPY_ALWAYS:
        relay.halves[CLIENT].mode = relay.halves[UPSTREAM].mode = MODE_SPLICE
    relay.id = accepted.id
    relay.client = accepted.client
    relay.target = <uint8_t> accepted.target
    relay.accepted_ns = loop.now_ns
    relay.deadline.owner = relay.check.owner = relay
    relay.state = RELAY_RESOLVING
    reports_accepted(loop, relay)
    timers_arm(&loop.timers, &relay.deadline, TIMER_CONNECT, loop.now_ns)
    if loop.plan == NULL or bending_begin(loop, relay):
        _resolve(loop, relay)


cdef void opening_turn(Loop *loop, Relay *relay) noexcept nogil:
    if bending_has(relay) and not bending_go_on(loop, relay):
        return
    if bending_waits(relay) and bending_may_dial(loop, relay):
        timers_arm(&loop.timers, &relay.deadline, TIMER_CONNECT, loop.now_ns)
        _resolve(loop, relay)


cdef void opening_turn_away(Loop *loop, const Message *accepted, uint8_t reason, int error) noexcept nogil:
    sync_sub(&loop.counters.active, 1)          # before the report, which must be true when it is read
    reports_refused(loop, accepted, reason, error)
    net_reset(accepted.fd)


cdef void opening_client_event(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil:
    """An event of a client whose upstream is not connected yet: is there anything left to connect for?

    Its bytes stay unread in the kernel, so that an error is reported before they are read. A direct connection would
    have delivered those before a reset. A FIN may be half a close, of a client that waits for a greeting.
    """
    cdef char byte
    if not bits & READY_ERROR:
        return
    relay.sides[CLIENT].error_pending = True
    if net_peek(relay.sides[CLIENT].watch.fd, &byte, 1) <= 0:
        relay.reason = REASON_CLIENT_RESET
        closing_close(loop, relay, True)


# --- addresses ---

cdef void _resolve(Loop *loop, Relay *relay) noexcept nogil:
    """Connects with addresses that have not expired; else asks for new ones, once for all relays that wait."""
    cdef Upstream *upstream = &loop.upstreams[relay.target]
    cdef int64_t sent
    if upstream.list != NULL and upstream.list.count and loop.now_ns < upstream.list.expires_ns:
        _connect(loop, relay)
    elif not upstream.waiting:
        sync_store(&upstream.asked, 1)
        sent = net_send(loop.lookup_wakeup, <const char *> "n", 1)
        upstream.waiting = sent > 0 or net_would_block(sent)    # not sent, for want of memory: the next client asks again


cdef void opening_resolved(Loop *loop, Relay *relay) noexcept nogil:
    if relay.state == RELAY_RESOLVING and not bending_waits(relay):
        if loop.upstreams[relay.target].list.count:
            _connect(loop, relay)
        else:
            closing_connect_failed(loop, relay, REASON_DNS, 0)


# --- attempts to connect ---

cdef void _connect(Loop *loop, Relay *relay) noexcept nogil:
    relay.connecting = connecting_new(loop.upstreams[relay.target].list, &loop.tuning)
    if relay.connecting == NULL:
        closing_connect_failed(loop, relay, REASON_LIMIT, ENOMEM)
        return
    relay.state = RELAY_CONNECTING
    opening_next_attempt(loop, relay)


cdef void opening_next_attempt(Loop *loop, Relay *relay) noexcept nogil:
    cdef const net_addr *first = &relay.connecting.list.addresses[0]
    if connecting_next(relay.connecting, loop.pump.poller, table_tag(relay)) == CONNECTING_FAILED:
        if net_would_block(-relay.connecting.error) and net_is_unix(first):
            relay.connecting.started = 0        # its backlog is full: again, until TIMER_CONNECT
            timers_arm(&loop.timers, &relay.check, TIMER_RETRY, loop.now_ns)
            return
        closing_connect_failed(loop, relay, _failure(relay.connecting.error), relay.connecting.error)
    elif connecting_has_more(relay.connecting):
        timers_arm(&loop.timers, &relay.check, TIMER_STAGGER, loop.now_ns)
    else:
        timers_cancel(&loop.timers, &relay.check)


cdef uint8_t _failure(int error) noexcept nogil:
    """The reason that goes with the errno of a failed connect."""
    if error == ECONNREFUSED or error == ENOENT:        # the second: nobody has bound the path of a UNIX socket
        return REASON_REFUSED
    if error == ETIMEDOUT:
        return REASON_CONNECT_TIMEOUT
    if net_out_of_resources(-error) or error == EADDRNOTAVAIL:      # EMFILE and the like; no free local port
        return REASON_LIMIT
    return REASON_UNREACHABLE


cdef void opening_timed_out(Loop *loop, Relay *relay) noexcept nogil:
    if relay.state == RELAY_CONNECTING and relay.connecting.started:
        relay.connecting.last = relay.connecting.started - 1
    closing_connect_failed(loop, relay, REASON_DNS if relay.state == RELAY_RESOLVING else REASON_CONNECT_TIMEOUT, ETIMEDOUT)


cdef void opening_attempt_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil:
    """An event of attempt `number`, counted from 0."""
    cdef int won = connecting_event(relay.connecting, loop.pump.poller, number, bits)
    if won >= 0:
        _connected(loop, relay, <uint32_t> won)
    elif won == CONNECTING_FAILED:
        opening_next_attempt(loop, relay)


cdef void _connected(Loop *loop, Relay *relay, uint32_t number) noexcept nogil:
    cdef Side *upstream = &relay.sides[UPSTREAM]
    cdef uint32_t bits = relay.connecting.ready[number]
    connecting_take(relay.connecting, loop.pump.poller, number, &upstream.watch)
    relay.upstream = relay.connecting.list.addresses[number]
    upstream.no_delay = upstream.pacing_off = net_is_unix(&relay.upstream)
    relay.attempt = <uint8_t> (number + 1)
    upstream.error = relay.connecting.error
    upstream.ready = bits & (READY_IN | READY_OUT)
    upstream.read_to_eagain = bits & (READY_EOF | READY_URGENT) != 0
    closing_forget_attempts(loop, relay)
    relay.connected_ns = loop.now_ns
    relay.state = RELAY_RELAYING
    reports_connected(loop, relay)
    timers_arm(&loop.timers, &relay.check, TIMER_KEEPALIVE, loop.now_ns)
    timers_cancel(&loop.timers, &relay.deadline)
    loop_enqueue(loop, relay)
