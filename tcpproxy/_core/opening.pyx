# The beginning of a relay: the model is in opening.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.bending cimport bending_begin, bending_go_on, bending_has, bending_may_dial, bending_waits
from tcpproxy._core.buffer cimport Buffer, buffer_clear, buffer_drop, buffer_fill
from tcpproxy._core.closing cimport closing_close, closing_connect_failed, closing_forget_attempts, closing_out_of_memory
from tcpproxy._core.connecting cimport CONNECTING_FAILED, addresses_avoid, connecting_avoids, connecting_event, \
    connecting_has_more, connecting_new, connecting_next, connecting_take, connecting_use
from tcpproxy._core.events cimport REASON_CLIENT_RESET, REASON_CONNECT_TIMEOUT, REASON_DNS, REASON_LIMIT, \
    REASON_REFUSED, REASON_UNREACHABLE
from tcpproxy._core.fallback cimport fallback_begin, fallback_has, fallback_next, fallback_reached
from tcpproxy._core.half cimport MODE_SPLICE, ZERO_COPY_ALWAYS, Side
from tcpproxy._core.header cimport HEADER_ROOM, header_write
from tcpproxy._core.introducing cimport introducing_begin, introducing_event
from tcpproxy._core.loop cimport CLIENT, RELAY_CONNECTING, RELAY_GREETING, RELAY_INTRODUCING, RELAY_RELAYING, RELAY_RESOLVING, \
    UPSTREAM, Listener, Upstream, loop_enqueue
from tcpproxy._core.metering cimport metering_begin
from tcpproxy._core.net cimport EADDRNOTAVAIL, ECONNREFUSED, EDEADLK, ENOENT, ENOMEM, ETIMEDOUT, NET_HOLDS, NET_NONE, \
    net_addr, net_is_unix, net_leads_to, net_may_be_own, net_no_delay, net_out_of_resources, net_own_address, net_peek, \
    net_reset, net_send, net_send_held, net_speaks_v6, net_would_block
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, WATCH_STREAM, poller_add, \
    poller_rearm
from tcpproxy._core.reports cimport reports_accepted, reports_connected, reports_refused
from tcpproxy._core.sources cimport sources_leave
from tcpproxy._core.sync cimport sync_claim, sync_peek, sync_set, sync_store, sync_sub
from tcpproxy._core.table cimport table_new, table_release, table_tag
from tcpproxy._core.timers cimport TIMER_CONNECT, TIMER_KEEPALIVE, TIMER_RETRY, TIMER_STAGGER, timer_init, timers_arm, \
    timers_cancel


# --- a client ---

cdef void opening_start(Loop *loop, const Message *accepted) noexcept nogil:
    cdef Relay *relay = table_new(&loop.table)
    if relay != NULL:
        relay.sides[CLIENT].watch.fd = accepted.fd
        relay.sides[CLIENT].watch.tag = table_tag(relay)
    if relay == NULL or poller_add(loop.pump.poller, &relay.sides[CLIENT].watch, WATCH_STREAM) < 0:
        if not accepted.proxied:
            sources_leave(&loop.group.sources, &accepted.client)
        opening_turn_away(loop, accepted, REASON_LIMIT, ENOMEM)
        if relay != NULL:
            table_release(&loop.table, relay)
        return
    relay.sides[CLIENT].ready = READY_OUT
    relay.sides[CLIENT].no_delay = True         # inherited from the listener
    relay.sides[CLIENT].is_unix = relay.sides[CLIENT].pacing_off = net_is_unix(&accepted.client)
    relay.sides[UPSTREAM].watch.fd = NET_NONE
    if loop.pump.zero_copy == ZERO_COPY_ALWAYS:
        relay.halves[CLIENT].mode = relay.halves[UPSTREAM].mode = MODE_SPLICE
    relay.id = accepted.id
    relay.client = accepted.client
    relay.target = <uint8_t> accepted.target
    relay.accepted_ns = loop.now_ns
    timer_init(&relay.deadline, relay)
    timer_init(&relay.check, relay)
    if accepted.proxied:
        introducing_begin(loop, relay)
    else:
        _begin(loop, relay)


cdef inline void _begin(Loop *loop, Relay *relay) noexcept nogil:
    """The step after the client's address is known, which is at once or after its PROXY header."""
    relay.state = RELAY_RESOLVING
    reports_accepted(loop, relay)
    timers_arm(&loop.timers, &relay.deadline, TIMER_CONNECT, loop.now_ns)
    if loop.plan == NULL or bending_begin(loop, relay):
        _dial(loop, relay)


cdef void opening_turn(Loop *loop, Relay *relay) noexcept nogil:
    if bending_has(relay) and not bending_go_on(loop, relay):
        return
    if bending_waits(relay) and bending_may_dial(loop, relay):
        timers_arm(&loop.timers, &relay.deadline, TIMER_CONNECT, loop.now_ns)
        _dial(loop, relay)
    elif fallback_has(relay) and relay.connecting.reason:
        _next_target(loop, relay, relay.connecting.reason, relay.connecting.error)


cdef void opening_turn_away(Loop *loop, const Message *accepted, uint8_t reason, int error) noexcept nogil:
    sync_sub(&loop.counters.active, 1)          # before the report, which must be true when it is read
    reports_refused(loop, accepted, reason, error, NULL)
    net_reset(accepted.fd)


cdef void opening_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil:
    if number == 0:
        _client_event(loop, relay, bits)
    else:
        _greet(loop, relay)


cdef void _client_event(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil:
    """An event of a client whose upstream is not connected yet: closes the relay if the client was reset and has sent nothing.

    If it has sent bytes before its reset, the attempt goes on, because a direct connection would have delivered them. They are
    only peeked at, and stay in the kernel. The attempt also goes on after a FIN, which may be a half-close of a client that
    waits for a greeting.
    """
    cdef char byte
    if relay.state == RELAY_INTRODUCING:
        if introducing_event(loop, relay, bits):
            _begin(loop, relay)
        return
    if not bits & READY_ERROR:
        return
    relay.sides[CLIENT].error_pending = True
    if net_peek(relay.sides[CLIENT].watch.fd, &byte, 1) <= 0:
        relay.reason = REASON_CLIENT_RESET
        closing_close(loop, relay, True)


# --- targets ---

cdef inline void _dial(Loop *loop, Relay *relay) noexcept nogil:
    if loop.upstreams[relay.target].targets > 1 and not fallback_begin(loop, relay):
        closing_connect_failed(loop, relay, REASON_LIMIT, ENOMEM)
    else:
        _resolve(loop, relay)


cdef void _failed(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil:
    """The current target was not reached.

    The next target is tried in a later turn: this batch may still have events of the failed attempts, and attempts at the next
    target have the same tags.
    """
    if reason == REASON_LIMIT or not fallback_has(relay):
        closing_connect_failed(loop, relay, reason, error)
        return
    relay.connecting.reason = reason
    relay.connecting.error = error
    loop_enqueue(loop, relay)


cdef void _next_target(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil:
    if fallback_next(loop, relay, reason, error):
        _resolve(loop, relay)
    else:
        closing_connect_failed(loop, relay, reason, error)


cdef void opening_share_over(Loop *loop, Relay *relay) noexcept nogil:
    _next_target(loop, relay, _too_late(relay), ETIMEDOUT)


# --- addresses ---

cdef void _resolve(Loop *loop, Relay *relay) noexcept nogil:
    """Connects if there are addresses that have not expired; else asks for new ones, once for all relays that wait."""
    cdef Upstream *upstream = &loop.upstreams[relay.target]
    cdef int64_t sent
    if upstream.list != NULL and upstream.list.count and loop.now_ns < upstream.list.expires_ns:
        _connect(loop, relay)
    elif not upstream.waiting:
        sync_store(&upstream.asked, 1)
        sent = net_send(loop.lookup_wakeup, <const char *> "n", 1)
        upstream.waiting = sent > 0 or net_would_block(sent)    # False for lack of memory: the next client asks again


cdef void opening_resolved(Loop *loop, Relay *relay) noexcept nogil:
    if relay.state == RELAY_RESOLVING and not bending_waits(relay):
        if loop.upstreams[relay.target].list.count:
            _connect(loop, relay)
        else:
            _failed(loop, relay, REASON_DNS, 0)


# --- attempts to connect ---

cdef void _avoid_family(Loop *loop, int target) noexcept nogil:
    """Moves the addresses of a family that did not answer to the end of the list."""
    cdef Upstream *upstream = &loop.upstreams[target]
    cdef uint64_t avoided = sync_peek(&loop.group.avoided[target])
    if avoided > loop.now_ns:
        if avoided != upstream.list.avoided:
            upstream.list = addresses_avoid(upstream.list, avoided)
    elif avoided:
        sync_claim(&loop.group.avoided[target], avoided, 0)     # the next look-up has the system's order again


cdef inline void _connect(Loop *loop, Relay *relay) noexcept nogil:
    _avoid_family(loop, relay.target)
    if fallback_has(relay):
        connecting_use(relay.connecting, loop.upstreams[relay.target].list)
    else:
        relay.connecting = connecting_new(loop.upstreams[relay.target].list, &loop.tuning)
    if relay.connecting == NULL:
        closing_connect_failed(loop, relay, REASON_LIMIT, ENOMEM)
        return
    relay.state = RELAY_CONNECTING
    opening_next_attempt(loop, relay)


cdef bint _leads_back(Loop *loop, const Relay *relay, const net_addr *to) noexcept nogil:
    """Would a connection to this path come back to its own forward? A path may become a link to the listener's file.

    Each round of such a loop has a client of this process; only for such a client, of a UNIX socket, does this make calls.
    """
    cdef const net_addr *peer = &relay.client
    cdef const Listener *listener
    cdef int i
    if relay.origin != NULL and relay.origin.via.length:
        peer = &relay.origin.via
    if not net_may_be_own(peer):
        return False
    for i in range(loop.accepting.count):
        listener = &loop.accepting.listeners[i]
        if listener.target == loop.upstreams[relay.target].first and net_leads_to(to, listener.watch.fd):
            return True
    return False


cdef void opening_next_attempt(Loop *loop, Relay *relay) noexcept nogil:
    cdef const net_addr *first = &relay.connecting.list.addresses[0]
    if net_is_unix(first) and _leads_back(loop, relay, first):
        _failed(loop, relay, REASON_REFUSED, EDEADLK)
        return
    if connecting_next(relay.connecting, loop.pump.poller, table_tag(relay)) == CONNECTING_FAILED:
        if net_would_block(-relay.connecting.error) and net_is_unix(first):
            relay.connecting.started = 0        # the backlog is full: retries until TIMER_CONNECT
            timers_arm(&loop.timers, &relay.check, TIMER_RETRY, loop.now_ns)
            return
        _failed(loop, relay, _failure(relay.connecting.error), relay.connecting.error)
    elif connecting_has_more(relay.connecting):
        timers_arm(&loop.timers, &relay.check, TIMER_STAGGER, loop.now_ns)
    else:
        timers_cancel(&loop.timers, &relay.check)


cdef uint8_t _failure(int error) noexcept nogil:
    """The reason for the errno of a failed connect."""
    if error == ECONNREFUSED or error == ENOENT:        # ENOENT: the path of a UNIX socket does not exist
        return REASON_REFUSED
    if error == ETIMEDOUT:
        return REASON_CONNECT_TIMEOUT
    if net_out_of_resources(-error) or error == EADDRNOTAVAIL:      # EMFILE and the like; no free local port
        return REASON_LIMIT
    return REASON_UNREACHABLE


cdef uint8_t _too_late(Relay *relay) noexcept nogil:
    """The reason of a time-out."""
    if relay.state == RELAY_RESOLVING:
        return REASON_DNS
    if relay.connecting != NULL and relay.connecting.started:      # NULL: it is connected, but its header is not sent yet
        relay.connecting.last = relay.connecting.started - 1
    return REASON_CONNECT_TIMEOUT


cdef void opening_timed_out(Loop *loop, Relay *relay) noexcept nogil:
    cdef uint8_t reason = _too_late(relay)
    if fallback_has(relay):
        relay.connecting.tried = <uint32_t> -1      # no time is left for others
        fallback_next(loop, relay, reason, ETIMEDOUT)
    closing_connect_failed(loop, relay, reason, ETIMEDOUT)


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
    cdef uint64_t avoided
    connecting_take(relay.connecting, loop.pump.poller, number, &upstream.watch)
    if number:
        avoided = connecting_avoids(relay.connecting, number, loop.now_ns)
        if avoided:
            sync_set(&loop.group.avoided[relay.target], avoided)
    relay.upstream = relay.connecting.list.addresses[number]
    upstream.is_unix = upstream.no_delay = upstream.pacing_off = net_is_unix(&relay.upstream)
    relay.attempt = <uint8_t> (number + 1)
    upstream.error = relay.connecting.error
    upstream.ready = bits & (READY_IN | READY_OUT)
    upstream.read_to_eagain = bits & (READY_EOF | READY_URGENT) != 0
    if fallback_has(relay):
        fallback_reached(loop, relay)
    closing_forget_attempts(loop, relay)
    if not loop.send_header or _greets(loop, relay):
        _relay(loop, relay)


cdef inline void _relay(Loop *loop, Relay *relay) noexcept nogil:
    relay.connected_ns = loop.now_ns
    relay.state = RELAY_RELAYING
    if loop.metered and not metering_begin(relay):
        closing_out_of_memory(loop, relay)
        return
    reports_connected(loop, relay)
    timers_arm(&loop.timers, &relay.check, TIMER_KEEPALIVE, loop.now_ns)
    timers_cancel(&loop.timers, &relay.deadline)
    loop_enqueue(loop, relay)


# --- the PROXY header for upstream ---

cdef bint _greets(Loop *loop, Relay *relay) noexcept nogil:
    """Sends the header. False: only a part was sent, and the relay has to wait.

    If the client has sent bytes, the header is held (MSG_MORE), and the relay's next turn sends both in one segment. If not,
    TCP_NODELAY is set: otherwise Nagle's algorithm would hold later bytes until upstream has acknowledged the header.
    """
    cdef Side *upstream = &relay.sides[UPSTREAM]
    cdef bint held = NET_HOLDS and _has_bytes(loop, relay)
    cdef uint8_t header[HEADER_ROOM]
    cdef net_addr destination
    cdef int size
    cdef int64_t sent
    _find_destination(loop, relay, &destination)
    size = header_write(loop.send_header, &relay.client, &destination, header)
    if not held and not upstream.no_delay:
        net_no_delay(upstream.watch.fd)
        upstream.no_delay = True
    sent = net_send_held(upstream.watch.fd, header, size) if held else net_send(upstream.watch.fd, header, size)
    if sent == size:
        return True
    if sent >= 0 or net_would_block(sent):
        sent = max(sent, 0)
        if buffer_fill(&relay.halves[CLIENT].buffer, <const char *> header + sent, <uint32_t> (size - sent)) == 0:
            relay.state = RELAY_GREETING
            timers_cancel(&loop.timers, &relay.check)
            _await_room(loop, upstream)
            return False
        sent = -ENOMEM
    upstream.error = <int> -sent                # relay.pyx passes it on, after the bytes of upstream
    return True


cdef bint _has_bytes(Loop *loop, const Relay *relay) noexcept nogil:
    """Has the client sent bytes that its first turn will deliver?"""
    cdef const Side *client = &relay.sides[CLIENT]
    return client.ready & READY_IN != 0 and not client.read_to_eagain and not client.error_pending \
        and loop.pump.tap == NULL and not loop.paused and relay.halves[CLIENT].shaper == NULL


cdef void _greet(Loop *loop, Relay *relay) noexcept nogil:
    """An event of upstream in RELAY_GREETING: sends the rest of the header."""
    cdef Side *upstream = &relay.sides[UPSTREAM]
    cdef Buffer *rest = &relay.halves[CLIENT].buffer
    cdef int64_t sent
    if rest.memory == NULL:                     # a fault has taken the relay meanwhile: the header is first in its shaper
        _relay(loop, relay)
        return
    if not upstream.ready & READY_OUT:
        return
    sent = net_send(upstream.watch.fd, rest.memory + rest.start, rest.end - rest.start)
    if sent == 0 or net_would_block(sent):
        _await_room(loop, upstream)
    elif sent > 0:
        buffer_drop(rest, <uint32_t> sent)
        if rest.memory != NULL:
            _await_room(loop, upstream)
        else:
            _relay(loop, relay)
    else:
        buffer_clear(rest)
        upstream.error = <int> -sent
        _relay(loop, relay)


cdef void _await_room(Loop *loop, Side *upstream) noexcept nogil:
    upstream.ready &= ~READY_OUT
    poller_rearm(loop.pump.poller, &upstream.watch, READY_OUT)


cdef void _find_destination(Loop *loop, const Relay *relay, net_addr *destination) noexcept nogil:
    """Sets the address that the client connected to. It needs a call only if the listener has a wildcard address."""
    cdef const Upstream *first = &loop.upstreams[loop.upstreams[relay.target].first]
    cdef const net_addr *place
    if relay.origin != NULL and relay.origin.via.length:
        destination[0] = relay.origin.destination
        return
    place = &first.places[net_speaks_v6(&relay.client)]
    if place.length and place.length == relay.client.length:
        destination[0] = place[0]
    else:
        net_own_address(relay.sides[CLIENT].watch.fd, destination)
