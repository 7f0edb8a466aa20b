# The descriptors and the memory of a loop: see resources.pxd.
from libc.errno cimport EMFILE, ENOMEM
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from tcpproxy._core.bulk cimport bulk_init
from tcpproxy._core.connecting cimport addresses_release
from tcpproxy._core.events cimport events_free, events_init
from tcpproxy._core.half cimport TURN_LEAST_BYTES, ZERO_COPY_OFF
from tcpproxy._core.inbox cimport MESSAGE_CONNECTION, Message, inbox_init, inbox_pop
from tcpproxy._core.loop cimport LIFETIME_MOST_NS, UPSTREAMS, Counters, Relay, relay_alive
from tcpproxy._core.net cimport NET_NONE, net_close, net_reset
from tcpproxy._core.plan cimport plan_release
from tcpproxy._core.poller cimport poller_free, poller_new
from tcpproxy._core.spin cimport spin_init
from tcpproxy._core.splice cimport PIPE_BYTES, Pipe, pipes_free
from tcpproxy._core.table cimport table_at, table_free
from tcpproxy._core.tap cimport TAP_READ, TAP_SIZE, Tap, tap_free, tap_init
from tcpproxy._core.timers cimport TIMER_CONNECT, TIMER_FLUSH, TIMER_HALF_CLOSE, TIMER_HEADER, TIMER_IDLE, TIMER_KEEPALIVE, \
    TIMER_LINGER, TIMER_RETRY, TIMER_STAGGER, TIMER_STUCK, TIMER_UNACKED

cdef enum:
    # The room of a worker's ring; a power of two. A connection has three records. A reader that sleeps for 20 ms loses none
    # below 100,000 a second.
    EVENT_RECORDS = 2048
    TURN_LEAST_READS = 4        # a choice, for a larger --buffer-size: as many reads as a turn has at least
    # TCP keepalive: after this many unanswered probes a peer counts as dead; the time between two probes is this part of the
    # idle time. So a dead peer is found after one and a half times the idle time. A choice.
    KEEPALIVE_PROBES = 3
    KEEPALIVE_INTERVAL_PART = 6

cdef enum:
    NS_PER_MS = 1000000

# Lengths of timers that no option sets; timers.pxd says what each is for.
cdef enum:
    STAGGER_MS = 250            # RFC 8305, section 8
    KEEPALIVE_AFTER_MS = 1000   # shorter connections are spared these calls (docs/decisions.md, "One request on one connection")
    # A choice: time for several retransmissions. After that a receiver counts as stopped.
    LINGER_MS = 5000
    FLUSH_MS = 5                # a choice: the most delay of a reset; it costs 200 calls a second while a queue shrinks
    RETRY_MS = 50               # a choice: twenty calls a second for a client that waits
    STUCK_MS = 100              # a choice: ten calls a second for a receiver that takes nothing


cdef int resources_init(Loop *loop, const Settings *settings) noexcept nogil:
    inbox_init(&loop.inbox)
    loop.pump.poller = poller_new()
    if loop.pump.poller == NULL:
        return -EMFILE
    loop.pump.scratch = loop.pump.into = <char *> malloc(settings.buffer_size)
    if loop.pump.scratch == NULL or events_init(&loop.events, EVENT_RECORDS, settings.log_wakeup) < 0:
        return -ENOMEM
    loop.pump.size = settings.buffer_size
    loop.paused = <uint8_t> settings.paused
    loop.upstream_count = settings.upstreams
    if settings.upstreams > 1:
        loop.by_target = <Counters *> calloc(settings.upstreams, sizeof(Counters))
        if loop.by_target == NULL:
            return -ENOMEM
    loop.send_header = settings.send_header
    loop.turn_bytes = loop.pump.budget = max(TURN_LEAST_BYTES, TURN_LEAST_READS * settings.buffer_size)
    loop.pump.splice_size = PIPE_BYTES
    loop.accepting.lifetime_ns = LIFETIME_MOST_NS
    loop.pump.now_ns = &loop.now_ns
    loop.pump.may_read = UINT64_MAX
    loop.pump.zero_copy = settings.zero_copy
    if settings.tap:
        loop.pump.tap = <Tap *> calloc(1, sizeof(Tap))
        if loop.pump.tap == NULL or tap_init(loop.pump.tap, TAP_SIZE) < 0:
            return -ENOMEM
        loop.pump.size = min(loop.pump.size, <uint32_t> TAP_READ)
        loop.pump.zero_copy = ZERO_COPY_OFF
    bulk_init(&loop.bulk)
    spin_init(&loop.spin, settings.busy_poll_us * <int64_t> 1000)
    loop.lookup_wakeup = settings.lookup_wakeup
    loop.half_close = settings.half_close_timeout > 0
    loop.tuning.keepalive_idle = settings.keepalive
    loop.tuning.keepalive_interval = max(1, settings.keepalive // KEEPALIVE_INTERVAL_PART)
    loop.tuning.keepalive_count = KEEPALIVE_PROBES
    loop.tuning.socket_buffer = settings.socket_buffer
    loop.tuning.ephemeral_first = settings.ephemeral_first
    loop.tuning.ephemeral_last = settings.ephemeral_last
    _init_timers(loop, settings)
    return 0


cdef void _init_timers(Loop *loop, const Settings *settings) noexcept nogil:
    if settings.keepalive:
        loop.timers.lists[TIMER_UNACKED].length_ns = loop.tuning.keepalive_interval * <uint64_t> NS_PER_SECOND
    loop.timers.lists[TIMER_CONNECT].length_ns = <uint64_t> (settings.connect_timeout * NS_PER_SECOND)
    loop.timers.lists[TIMER_HEADER].length_ns = <uint64_t> (settings.header_timeout * NS_PER_SECOND)
    loop.timers.lists[TIMER_HALF_CLOSE].length_ns = <uint64_t> (settings.half_close_timeout * NS_PER_SECOND)
    loop.timers.lists[TIMER_IDLE].length_ns = <uint64_t> (settings.idle_timeout * NS_PER_SECOND)
    loop.timers.lists[TIMER_STAGGER].length_ns = STAGGER_MS * <uint64_t> NS_PER_MS
    loop.timers.lists[TIMER_KEEPALIVE].length_ns = KEEPALIVE_AFTER_MS * <uint64_t> NS_PER_MS
    loop.timers.lists[TIMER_LINGER].length_ns = LINGER_MS * <uint64_t> NS_PER_MS
    loop.timers.lists[TIMER_FLUSH].length_ns = FLUSH_MS * <uint64_t> NS_PER_MS
    loop.timers.lists[TIMER_RETRY].length_ns = RETRY_MS * <uint64_t> NS_PER_MS
    loop.timers.lists[TIMER_STUCK].length_ns = STUCK_MS * <uint64_t> NS_PER_MS


cdef void _close_inbox_and_listeners(Loop *loop, bint reset) noexcept nogil:
    """Closes the listeners of a loop that never ran, and accepted sockets that are still in its inbox; `reset`: by RST."""
    cdef Message message
    cdef int i
    while inbox_pop(&loop.inbox, &message):
        if message.kind == MESSAGE_CONNECTION and reset:
            net_reset(message.fd)
        elif message.kind == MESSAGE_CONNECTION:
            net_close(message.fd)
    for i in range(loop.accepting.count):
        net_close(loop.accepting.listeners[i].watch.fd)
    loop.accepting.count = 0


cdef void resources_close(Loop *loop) noexcept nogil:
    _close_inbox_and_listeners(loop, True)
    pipes_free(&loop.pump.pipes)
    if loop.pump.poller != NULL:
        poller_free(loop.pump.poller)
        loop.pump.poller = NULL


cdef void resources_free(Loop *loop) noexcept nogil:
    cdef int i
    resources_close(loop)
    for i in range(UPSTREAMS):
        addresses_release(loop.upstreams[i].list)
        free(loop.upstreams[i].incoming)
    table_free(&loop.table)
    plan_release(loop.plan)
    events_free(&loop.events)
    if loop.pump.tap != NULL:
        tap_free(loop.pump.tap)
        free(loop.pump.tap)
    free(loop.pump.scratch)
    free(loop.by_target)


cdef void resources_close_after_fork(Loop *loop) noexcept nogil:
    """Closes the child's copies of the parent's descriptors, without RST, FIN or a change of the poller's registrations.

    A copy that stayed open here would hold back the parent's resets and keep its epoll registrations alive. Only
    the poller's memory is freed. The worker may have been changing the rest at the moment of the fork, so that is never
    freed. A socket that it had accepted or opened and not stored yet stays open until the child exits.
    """
    cdef uint32_t i
    for i in range(loop.table.size):
        if relay_alive(table_at(&loop.table, i)):
            _close_copies(table_at(&loop.table, i))
    for i in range(<uint32_t> loop.pump.pipes.idle_count):
        _close_pipe(loop.pump.pipes.idle[i])
    _close_inbox_and_listeners(loop, False)
    if loop.pump.poller != NULL:
        poller_free(loop.pump.poller)       # safe: its memory changes only in poller_add, when it grows
        loop.pump.poller = NULL


cdef void _close_copies(Relay *relay) noexcept nogil:
    cdef uint32_t i
    for i in range(2):
        if relay.sides[i].watch.fd != NET_NONE:
            net_close(relay.sides[i].watch.fd)
        if relay.halves[i].pipe != NULL:
            _close_pipe(relay.halves[i].pipe)
    if relay.connecting != NULL:
        for i in range(relay.connecting.started):
            if relay.connecting.attempts[i].fd != NET_NONE:
                net_close(relay.connecting.attempts[i].fd)


cdef void _close_pipe(Pipe *pipe) noexcept nogil:
    net_close(<net_socket> pipe.reader)
    net_close(<net_socket> pipe.writer)
