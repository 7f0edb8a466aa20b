# The listeners of a worker: the model is in accepting.pxd.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from tcpproxy._core.admission cimport admission_admits, admission_wants_header
from tcpproxy._core.events cimport EVENT_ACCEPT_ERROR, EVENT_ACCEPT_LIMIT, REASON_DENIED, REASON_LIMIT
from tcpproxy._core.inbox cimport MESSAGE_CONNECTION, Message, inbox_push
from tcpproxy._core.loop cimport Counters, Group, Listener, Upstream, loop_of_target
from tcpproxy._core.net cimport net_accept, net_accept_transient, net_addr, net_await_input, net_close, net_hang, \
    net_out_of_resources, net_own_address, net_socket, net_speaks_v6, net_unpack, net_would_block
from tcpproxy._core.opening cimport opening_start, opening_turn_away
from tcpproxy._core.poller cimport WATCH_LISTENER, poller_add, poller_remove, poller_wake
from tcpproxy._core.reports cimport reports_paused
from tcpproxy._core.sources cimport sources_enter
from tcpproxy._core.sync cimport sync_add, sync_bump, sync_check, sync_load, sync_peek, sync_store, sync_sub
from tcpproxy._core.tag cimport tag_listener

cdef enum:                  # docs/decisions.md has the measurement: "Short connections stay where they are accepted"
    SHORT_LIVED_NS = 20000000   # connections that live shorter on average are short
    SHORT_LIVED_EXCESS = 8      # how many more of them than the others a worker keeps before it hands one over

cdef enum:
    # The most connections that one event accepts, because relays wait meanwhile. A choice. How the number grows was measured
    # (docs/decisions.md, "Several accepts in a row").
    ACCEPTS_IN_A_ROW = 16
    # Batches with a connection that raise the number by one, so that accepts that find nothing are rare.
    BATCHES_PER_ACCEPT = 4
    # ns without accepting after EMFILE and the like, or at Group.limit: no event reports that descriptors or memory are free
    # again. A choice: ten tries a second cost no noticeable CPU time, and a client waits at most 0.1 s longer.
    PAUSE_NS = 100000000
    # The least ns of a pause at Group.limit, even if a relay ends at once. Proxies that were connected in a loop refilled a
    # free slot 10,000 times a second. The 5 ms are a choice.
    LIMIT_PAUSE_LEAST_NS = 5000000
    # The most accepts when a command asks for all clients in the backlog: the size of a backlog.
    ACCEPTS_AT_MOST = 4096


cdef void accepting_add(Loop *loop, net_socket fd, int target) noexcept nogil:
    cdef Listener *listener = &loop.accepting.listeners[loop.accepting.count]
    listener.watch.fd = fd
    listener.target = target
    loop.accepting.count += 1
    if loop.send_header:
        _note_place(&loop.upstreams[target], fd)


cdef void _note_place(Upstream *upstream, net_socket fd) noexcept nogil:
    """Stores the address that clients of a listener connect to, unless it is a wildcard address."""
    cdef net_addr own
    cdef uint8_t ip[16]
    cdef uint16_t port
    cdef bint family
    cdef int i
    net_own_address(fd, &own)
    if not net_unpack(&own, ip, &port):
        return
    family = net_speaks_v6(&own)
    upstream.place_counts[family] = min(upstream.place_counts[family] + 1, 2)
    upstream.places[family].length = 0
    for i in range(16 if family else 4):
        if ip[15 - i] and upstream.place_counts[family] == 1:
            upstream.places[family] = own
            return


cdef void accepting_watch(Loop *loop) noexcept nogil:
    cdef int i, rc = 0
    loop.accepting.resume_ns = 0
    loop.accepting.at_limit = False
    if loop.accepting.watched or sync_peek(&loop.stop):
        return
    for i in range(loop.accepting.count):
        loop.accepting.listeners[i].watch.tag = tag_listener(<uint32_t> i)
        rc = poller_add(loop.pump.poller, &loop.accepting.listeners[i].watch, WATCH_LISTENER)
        if rc < 0:                              # no memory for it: undo, and try again after the pause
            _unwatch(loop, i)
            loop.accepting.resume_ns = loop.now_ns + PAUSE_NS
            reports_paused(loop, EVENT_ACCEPT_ERROR, -rc)
            return
    loop.accepting.watched = True


cdef void _unwatch(Loop *loop, int count) noexcept nogil:
    """Unregisters the first `count` listeners."""
    while count > 0:
        count -= 1
        poller_remove(loop.pump.poller, &loop.accepting.listeners[count].watch, WATCH_LISTENER)
    loop.accepting.watched = False


cdef void accepting_close(Loop *loop) noexcept nogil:
    cdef int i
    if loop.accepting.watched:
        _unwatch(loop, loop.accepting.count)
    for i in range(loop.accepting.count):
        net_close(loop.accepting.listeners[i].watch.fd)
    loop.accepting.count = 0
    loop.accepting.resume_ns = 0


cdef void accepting_take_all(Loop *loop) noexcept nogil:
    cdef int i, _nth
    for i in range(loop.accepting.count):
        for _nth in range(ACCEPTS_AT_MOST):
            if not loop.accepting.watched or not _accept(loop, &loop.accepting.listeners[i], False):
                break


cdef void accepting_replace(Loop *loop, NewListeners *listeners) noexcept nogil:
    cdef int i
    cdef bint ends = sync_load(&loop.stop) or sync_load(&loop.finished)
    accepting_take_all(loop)
    accepting_close(loop)
    for i in range(loop.upstream_count):
        memset(loop.upstreams[i].place_counts, 0, sizeof(loop.upstreams[i].place_counts))
    for i in range(listeners.count):
        if ends:
            net_close(listeners.fds[i])
        else:
            accepting_add(loop, listeners.fds[i], listeners.targets[i])
    listeners.taken = True
    if not ends:
        accepting_watch(loop)


cdef int64_t accepting_hang(Loop *loop, bint on) noexcept nogil:
    cdef int64_t rc = 0
    cdef int i
    for i in range(loop.accepting.count):
        rc = min(rc, net_hang(loop.accepting.listeners[i].watch.fd, on))
    return rc


cdef void accepting_freed(Loop *loop) noexcept nogil:
    cdef uint64_t earliest_ns = loop.accepting.paused_ns + LIMIT_PAUSE_LEAST_NS
    if loop.accepting.at_limit and loop.accepting.resume_ns > earliest_ns:
        loop.accepting.resume_ns = earliest_ns


cdef void _pause(Loop *loop, int kind, int error) noexcept nogil:
    """Unregisters the listeners for a while, and writes an event record of this kind."""
    if loop.accepting.watched:
        _unwatch(loop, loop.accepting.count)
    loop.accepting.paused_ns = loop.now_ns
    loop.accepting.resume_ns = loop.now_ns + PAUSE_NS
    loop.accepting.at_limit = kind == EVENT_ACCEPT_LIMIT
    reports_paused(loop, kind, error)


cdef uint64_t _active(const Group *group) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(group.count):
        total += sync_load(&group.members[i].counters.active)
    return total


cdef bint _reserve(Loop *loop) noexcept nogil:
    """Counts one more connection in `active`. False: the group is at its limit, and nothing was counted."""
    sync_store(&loop.accepting.reserved, 1)     # before the count: who reads the count can read this, too
    sync_add(&loop.counters.active, 1)
    if _active(loop.group) <= loop.group.limit:
        return True
    sync_sub(&loop.counters.active, 1)
    sync_store(&loop.accepting.reserved, 0)
    return False


cdef bint _at_limit(const Loop *loop, const Listener *listener) noexcept nogil:
    """Whether a connection waits that no worker may accept.

    One connection may wake several workers. The last one that is allowed is then counted by one of them before it is accepted,
    and the others would take this for the limit. The listener is level-triggered, so that they are woken again.
    """
    cdef int i
    for i in range(loop.group.count):
        if sync_load(&loop.group.members[i].accepting.reserved):
            return False
    return _active(loop.group) >= loop.group.limit and net_await_input(listener.watch.fd, 0)


cdef void accepting_event(Loop *loop, uint32_t listener) noexcept nogil:
    """Accepts one connection, and more only if the previous batches had connections, too.

    The number grows by one after BATCHES_PER_ACCEPT batches in a row. Doubling it per batch wasted one accept in five (eight
    clients that connect and leave).
    """
    cdef int nth
    if not loop.accepting.watched:
        return                                  # a stale event: accepting was paused in this batch
    if loop.accepting.found and loop.accepting.credit < BATCHES_PER_ACCEPT * ACCEPTS_IN_A_ROW:
        loop.accepting.credit += 1
    else:
        loop.accepting.credit = BATCHES_PER_ACCEPT
    loop.accepting.found = True
    for nth in range(loop.accepting.credit // BATCHES_PER_ACCEPT):
        if not _accept(loop, &loop.accepting.listeners[listener], nth == 0):
            return


cdef bint _may_connect(Loop *loop, Message *accepted) noexcept nogil:
    """False: --allow or --deny rejects the client. The client of a trusted proxy is checked after its header has been read."""
    accepted.proxied = admission_wants_header(loop.group.admission, &accepted.client)
    return accepted.proxied or admission_admits(loop.group.admission, &accepted.client)


cdef bint _accept(Loop *loop, Listener *listener, bint announced) noexcept nogil:
    """Accepts one connection. False: no more for now. `announced`: an event has reported a waiting connection."""
    cdef Message accepted
    cdef Counters *own
    cdef int64_t fd
    if not _reserve(loop):
        if announced and _at_limit(loop, listener):
            _pause(loop, EVENT_ACCEPT_LIMIT, 0)
        return False
    fd = net_accept(listener.watch.fd, &accepted.client, &loop.tuning)
    sync_store(&loop.accepting.reserved, 0)
    if fd >= 0:
        accepted.kind = MESSAGE_CONNECTION
        accepted.id = sync_add(&loop.group.last_id, 1) + 1
        accepted.fd = <net_socket> fd
        accepted.target = listener.target
        accepted.body = accepted.done = NULL
        accepted.proxied = False
        if loop.group.admission != NULL and not _may_connect(loop, &accepted):
            opening_turn_away(loop, &accepted, REASON_DENIED, 0)
        elif accepted.proxied or sources_enter(&loop.group.sources, &accepted.client):
            _choose_worker(loop, &accepted)
        else:
            opening_turn_away(loop, &accepted, REASON_LIMIT, 0)
        return True
    sync_sub(&loop.counters.active, 1)
    if net_would_block(fd):
        loop.accepting.found = False
        return False
    if net_out_of_resources(fd) and not announced:
        return False                            # Linux allocates a descriptor before it checks whether a connection waits
    sync_bump(&loop.counters.accept_errors, 1)
    own = loop_of_target(loop, listener.target)
    if own != NULL:
        sync_bump(&own.accept_errors, 1)
    if net_accept_transient(<int> fd):
        return True
    _pause(loop, EVENT_ACCEPT_ERROR, <int> -fd)       # EMFILE and the like
    return False


cdef void _choose_worker(Loop *loop, const Message *accepted) noexcept nogil:
    """Keeps the connection, or hands it to the worker with the fewest connections, if that one has clearly fewer.

    A difference of a few connections that end soon is not worth a wake-up of another thread.
    """
    cdef uint64_t excess = SHORT_LIVED_EXCESS if loop.accepting.lifetime_ns < SHORT_LIVED_NS else 0
    cdef uint64_t mine = sync_peek(&loop.counters.active) - 1, fewest = mine, other
    cdef Loop *best = loop
    cdef int i
    for i in range(loop.group.count):
        other = sync_peek(&loop.group.members[i].counters.active)
        if other < fewest:
            fewest = other
            best = loop.group.members[i]
    if mine <= fewest + fewest // 4 + excess or not _hand_off(loop, best, accepted):
        opening_start(loop, accepted)


cdef bint _hand_off(Loop *loop, Loop *to, const Message *accepted) noexcept nogil:
    """Hands a connection to another worker, which counts it from now on. False: its inbox is full, or the worker ends.

    Either that worker sees that it has one connection more, or this one reads `finished` (the pattern of sync.pxd).
    Waking its poller is safe also if it has ended: pollers are freed when no worker of the group runs any more.
    """
    cdef bint taken
    sync_add(&to.counters.active, 1)
    sync_sub(&loop.counters.active, 1)          # before the push: the other worker may report the connection's end at once
    taken = not sync_check(&to.finished) and inbox_push(&to.inbox, accepted)
    if not taken:
        sync_add(&loop.counters.active, 1)
        sync_sub(&to.counters.active, 1)
    poller_wake(to.pump.poller)                 # even if not taken: `active` may have kept that worker from ending
    return taken
