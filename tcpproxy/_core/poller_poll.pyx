# poll(2) and WSAPoll: the contract is in poller.pxd.
#
# poll is level-triggered, the contract is edge-triggered: each bit of a stream is reported once, and then not requested
# again until `poller_rearm`. poll reports POLLERR and POLLHUP even if they were not requested, and would return at once
# for ever. So an entry with no bit armed leaves the set (its descriptor is negative there), and an error is reported
# once.
#
# WSAPoll differs: it reports POLLHUP as soon as the peer has ended its direction, although our direction goes on
# (NET_POLLHUP_STICKY). Such an entry leaves the set as well. It is polled without waiting every 1 to HUNG_POLL_MOST_MS ms,
# for a reset, or for room if we still send. WSAPoll refuses a set without a valid socket: entry 0 is always the wake-up
# socket.
#
# Cost: the kernel walks all entries in each call. So this poller is for platforms without epoll and kqueue, and for
# tests: it shows that the contract does not depend on one system.
from libc.errno cimport EAGAIN, EINTR, ENOMEM
from libc.stdlib cimport calloc, free, realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t
from tcpproxy._core.net cimport NET_NONE, net_close, net_out_of_resources, net_socket
from tcpproxy._core.tag cimport tag_wake
from tcpproxy._core.thread cimport thread_nap_us

cdef extern from "net.h" nogil:
    struct pollfd:
        net_socket fd
        short events
        short revents
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL
    short NET_POLLRDHUP, NET_POLLPRI        # 0 where there is none
    bint NET_POLLHUP_STICKY
    const char *NET_POLL_NAME
    int net_poll(pollfd *items, int count, int timeout_ms)
    int net_poll_ns(pollfd *items, int count, int64_t timeout_ns)
    int net_wake_pair(net_socket *reader, net_socket *writer)
    void net_wake(net_socket writer)
    void net_drain(net_socket reader)

cdef enum:
    EVERYTHING = READY_IN | READY_OUT | READY_EOF | READY_ERROR | READY_URGENT
    # The most milliseconds between two polls of entries that hung up: the time starts at 1 and doubles each time. It bounds how
    # late a reset after a peer's end is seen, and the cost of watching for it (16 calls a second). A choice, not a measurement.
    HUNG_POLL_MOST_MS = 64
    NO_MEMORY_NAP_US = 1000     # before the next try, when the kernel had no memory for the set. A choice
    # A look at so many sockets takes a tenth of the time of a turn of bulk. With one look for each turn 4 streams beside 1,000
    # idle connections moved a third of the bytes
    SOCKETS_PER_TURN = 128

cdef int64_t DAY_NS = 86400 * <int64_t> 1000000000

cdef struct Entry:
    Watch *watch
    uint8_t armed           # READY_ bits that may still be reported; READY_ERROR: no error has been reported yet
    uint8_t listener
    uint8_t hung            # its hang-up was reported, and WSAPoll would report it in every call

cdef struct Poll:
    pollfd *fds             # fds[i] belongs to entries[i]
    Entry *entries
    int count, room
    int start               # where the next search for events begins: a full batch must not prefer low slots
    int hung                # number of entries that are `hung`
    int hung_poll_ms        # ms until they are polled next
    net_socket wake_reader, wake_writer


cdef Poller *poller_new() noexcept nogil:
    cdef Poll *poller = <Poll *> calloc(1, sizeof(Poll))
    if poller == NULL:
        return NULL
    poller.wake_reader = poller.wake_writer = NET_NONE
    if net_wake_pair(&poller.wake_reader, &poller.wake_writer) < 0 or _grow(poller) < 0:
        poller_free(<Poller *> poller)
        return NULL
    poller.hung_poll_ms = 1
    poller.fds[0].fd = poller.wake_reader
    poller.fds[0].events = POLLIN
    poller.count = 1
    return <Poller *> poller


cdef void poller_free(Poller *handle) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    if poller.wake_reader != NET_NONE:
        net_close(poller.wake_reader)
        net_close(poller.wake_writer)
    free(poller.fds)
    free(poller.entries)
    free(poller)


cdef int _grow(Poll *poller) noexcept nogil:
    cdef int room = poller.room * 2 if poller.room else 64
    cdef void *fds = realloc(poller.fds, room * sizeof(pollfd))
    if fds == NULL:
        return -ENOMEM
    poller.fds = <pollfd *> fds
    cdef void *entries = realloc(poller.entries, room * sizeof(Entry))
    if entries == NULL:
        return -ENOMEM
    poller.entries = <Entry *> entries
    poller.room = room
    return 0


cdef inline void _ask(Poll *poller, int slot) noexcept nogil:
    """Requests what the entry is armed for. Nothing armed, or hung up: the entry leaves the set."""
    cdef Entry *entry = &poller.entries[slot]
    cdef pollfd *item = &poller.fds[slot]
    item.events = 0
    if entry.armed & READY_IN:
        item.events |= POLLIN
    if entry.armed & READY_OUT:
        item.events |= POLLOUT
    if entry.armed & READY_EOF:
        item.events |= NET_POLLRDHUP
    if entry.armed & READY_URGENT:
        item.events |= NET_POLLPRI
    item.fd = entry.watch.fd if entry.armed and not entry.hung else NET_NONE
    item.revents = 0


cdef int poller_add(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    cdef int slot = poller.count
    if slot == poller.room and _grow(poller) < 0:
        return -ENOMEM
    poller.count += 1
    watch.slot = slot
    poller.entries[slot].watch = watch
    poller.entries[slot].listener = kind == WATCH_LISTENER
    poller.entries[slot].hung = False
    poller.entries[slot].armed = READY_IN if kind == WATCH_LISTENER else EVERYTHING
    _ask(poller, slot)
    return 0


cdef void poller_rearm(Poller *handle, Watch *watch, uint32_t bits) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    poller.entries[watch.slot].armed |= bits & (READY_IN | READY_OUT)
    _ask(poller, watch.slot)
    poller.hung_poll_ms = 1


cdef void poller_move(Poller *handle, Watch *watch, Watch *to) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    to[0] = watch[0]
    poller.entries[to.slot].watch = to


cdef void poller_remove(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    cdef int slot = watch.slot, last = poller.count - 1
    poller.count = last
    poller.hung -= poller.entries[slot].hung
    if slot != last:
        poller.fds[slot] = poller.fds[last]
        poller.entries[slot] = poller.entries[last]
        poller.entries[slot].watch.slot = slot
    watch.slot = -1


cdef inline uint32_t _report(Poll *poller, int slot) noexcept nogil:
    """Returns what is new about this entry, as READY_ bits, and disarms these bits."""
    cdef Entry *entry = &poller.entries[slot]
    cdef short seen = poller.fds[slot].revents
    cdef uint32_t bits = 0
    if entry.listener:
        return READY_IN if seen else 0
    if seen & POLLIN:
        bits |= READY_IN
    if seen & POLLOUT:
        bits |= READY_OUT
    if seen & NET_POLLPRI:
        bits |= READY_IN | READY_URGENT
    if seen & NET_POLLRDHUP:
        bits |= READY_IN | READY_EOF
    if seen & POLLHUP and not entry.hung:
        bits |= READY_IN | READY_OUT | READY_EOF
        entry.hung = True
        poller.hung += 1
    if seen & (POLLERR | POLLNVAL):
        bits |= READY_IN | READY_OUT | READY_EOF | READY_ERROR
    entry.armed &= ~bits
    if seen & (POLLERR | POLLNVAL) or (entry.hung and not NET_POLLHUP_STICKY):
        # Only bits that are re-armed can be new from now on. The entry leaves the set, or poll would never wait again.
        poller.hung -= entry.hung
        entry.armed = entry.hung = 0
    _ask(poller, slot)
    return bits


cdef int _poll_hung(Poll *poller) noexcept nogil:
    """Polls the whole set and the entries that hung up, without waiting. Returns how many have something new."""
    cdef int slot, n
    for slot in range(1, poller.count):
        if poller.entries[slot].hung:
            poller.fds[slot].fd = poller.entries[slot].watch.fd
    n = net_poll(poller.fds, poller.count, 0)
    for slot in range(1, poller.count):
        if poller.entries[slot].hung and (n < 0 or poller.fds[slot].revents & ~POLLHUP == 0):
            n -= n > 0 and poller.fds[slot].revents != 0
            poller.fds[slot].fd = NET_NONE
    return n


cdef int _poll(Poll *poller, int timeout_ms) noexcept nogil:
    cdef int n, slice_ms
    if poller.hung == 0:
        return net_poll(poller.fds, poller.count, timeout_ms)
    while True:
        n = _poll_hung(poller)
        if n != 0 or timeout_ms == 0:
            return n
        slice_ms = poller.hung_poll_ms if timeout_ms < 0 or timeout_ms > poller.hung_poll_ms else timeout_ms
        n = net_poll(poller.fds, poller.count, slice_ms)
        if n != 0:
            return n
        if timeout_ms > 0:
            timeout_ms -= slice_ms
        poller.hung_poll_ms = min(poller.hung_poll_ms * 2, HUNG_POLL_MOST_MS)


cdef int poller_wait(Poller *handle, Ready *events, int room, int64_t timeout_ns, bint exact) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    cdef int i, n, slot, count = 0, timeout_ms = -1
    cdef int64_t ms
    cdef uint32_t bits
    if timeout_ns >= 0:
        ms = (timeout_ns + 999999) // 1000000
        timeout_ms = <int> ms if ms < 0x7fffffff else 0x7fffffff
    if exact and timeout_ns > 0 and poller.hung == 0:
        n = net_poll_ns(poller.fds, poller.count, min(timeout_ns, DAY_NS))
    else:
        n = _poll(poller, timeout_ms)
    while n < 0:
        if net_out_of_resources(n) or n == -EAGAIN:        # no memory for the set (WSAPoll: ENOBUFS), for now
            thread_nap_us(NO_MEMORY_NAP_US)
            return 0
        if n != -EINTR:
            return n
        n = _poll(poller, 0)                        # see poller_epoll.pyx
    if n > 0 and poller.fds[0].revents:
        net_drain(poller.wake_reader)
        n -= 1
        events[0].tag = tag_wake()
        events[0].bits = 0
        count = 1
    for i in range(poller.count - 1):
        if n == 0 or count == room:
            break
        slot = 1 + (poller.start + i) % (poller.count - 1)
        if poller.fds[slot].revents == 0 or poller.fds[slot].fd == NET_NONE:
            continue                                # WSAPoll sets POLLNVAL for entries that left the set
        n -= 1
        bits = _report(poller, slot)
        if bits:
            events[count].tag = poller.entries[slot].watch.tag
            events[count].bits = bits
            count += 1
            if count == room:
                poller.start = slot
    return count


cdef void poller_wake(Poller *handle) noexcept nogil:
    net_wake((<Poll *> handle).wake_writer)


cdef int poller_wait_turns(Poller *handle) noexcept nogil:
    return 1 + (<Poll *> handle).count // SOCKETS_PER_TURN


cdef const char *poller_name() noexcept nogil:
    return NET_POLL_NAME
