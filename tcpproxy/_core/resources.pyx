# What a loop owns, from the beginning of a worker to its end: the model is in resources.pxd.
from libc.errno cimport EMFILE, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from tcpproxy._core.bulk cimport bulk_init
from tcpproxy._core.connecting cimport addresses_release
from tcpproxy._core.events cimport events_free, events_init
from tcpproxy._core.inbox cimport MESSAGE_CONNECTION, Message, inbox_init, inbox_pop
from tcpproxy._core.loop cimport UPSTREAMS, Relay, relay_alive
from tcpproxy._core.net cimport NET_NONE, net_close
from tcpproxy._core.poller cimport poller_free, poller_new
from tcpproxy._core.spin cimport spin_init
from tcpproxy._core.splice cimport PIPE_SIZE, Pipe, pipes_free
from tcpproxy._core.table cimport table_at, table_free
from tcpproxy._core.timers cimport TIMER_CLIENT_GONE, TIMER_CONNECT, TIMER_FLUSH, TIMER_HALF_CLOSE, TIMER_IDLE, \
    TIMER_KEEPALIVE, TIMER_LINGER, TIMER_STAGGER, TIMER_STUCK, TIMER_UNACKED

cdef enum:
    EVENT_ROOM = 1024           # event records; a reader that sleeps 20 ms loses none below 50,000 a second


cdef int resources_init(Loop *loop, const Settings *settings) noexcept nogil:
    inbox_init(&loop.inbox)
    loop.pump.poller = poller_new()
    if loop.pump.poller == NULL:
        return -EMFILE
    loop.pump.scratch = <char *> malloc(settings.buffer_size)
    if loop.pump.scratch == NULL or events_init(&loop.events, EVENT_ROOM, settings.log_wakeup) < 0:
        return -ENOMEM
    loop.pump.size = settings.buffer_size
    loop.pump.budget = 4 * settings.buffer_size if settings.buffer_size > 65536 else 262144
    loop.pump.splice_size = PIPE_SIZE
    loop.pump.zero_copy = settings.zero_copy
    bulk_init(&loop.bulk)
    spin_init(&loop.spin, settings.busy_poll_us * <int64_t> 1000)
    loop.lookup_wakeup = settings.lookup_wakeup
    loop.half_close = settings.half_close_timeout > 0
    loop.tuning.keepalive_idle = settings.keepalive
    loop.tuning.keepalive_interval = max(1, settings.keepalive // 6)
    loop.tuning.keepalive_count = 3
    loop.tuning.socket_buffer = settings.socket_buffer
    loop.tuning.ephemeral_first = settings.ephemeral_first
    loop.tuning.ephemeral_last = settings.ephemeral_last
    _init_timers(loop, settings)
    return 0


cdef void _init_timers(Loop *loop, const Settings *settings) noexcept nogil:
    if settings.keepalive:
        loop.timers.lists[TIMER_UNACKED].length_ns = loop.tuning.keepalive_interval * <uint64_t> SECOND
    loop.timers.lists[TIMER_CONNECT].length_ns = <uint64_t> (settings.connect_timeout * SECOND)
    loop.timers.lists[TIMER_HALF_CLOSE].length_ns = <uint64_t> (settings.half_close_timeout * SECOND)
    loop.timers.lists[TIMER_IDLE].length_ns = <uint64_t> (settings.idle_timeout * SECOND)
    loop.timers.lists[TIMER_CLIENT_GONE].length_ns = SECOND
    loop.timers.lists[TIMER_STAGGER].length_ns = SECOND // 4        # RFC 8305, section 8
    loop.timers.lists[TIMER_KEEPALIVE].length_ns = SECOND
    loop.timers.lists[TIMER_LINGER].length_ns = 5 * <uint64_t> SECOND
    loop.timers.lists[TIMER_FLUSH].length_ns = SECOND // 200
    loop.timers.lists[TIMER_STUCK].length_ns = SECOND // 10


cdef void _close_waiting(Loop *loop) noexcept nogil:
    """Closes the listeners of a loop that never ran, and accepted sockets that are still in its inbox."""
    cdef Message message
    cdef int i
    while inbox_pop(&loop.inbox, &message):
        if message.kind == MESSAGE_CONNECTION:
            net_close(message.fd)
    for i in range(loop.accepting.count):
        net_close(loop.accepting.listeners[i].watch.fd)
    loop.accepting.count = 0


cdef void resources_close(Loop *loop) noexcept nogil:
    _close_waiting(loop)
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
    events_free(&loop.events)
    free(loop.pump.scratch)


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
    _close_waiting(loop)
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
