# poll(2): the contract is in poller.pxd.
#
# poll reports levels, the contract wants edges: every bit of a stream is reported once and then left out of the set
# until `poller_rearm` asks for it. Bits that poll reports unasked (POLLERR, POLLHUP) would make it return at once for ever,
# so an entry with nothing armed leaves the set by a negative descriptor, and an error is reported once.
#
# Cost: the kernel walks all entries at each call, so this is for platforms without better, and for proving that the
# contract is one. The wake pipe is always entry 0.
from libc.errno cimport errno, EAGAIN, EINTR, ENOMEM
from libc.stdlib cimport calloc, free, realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN, POLLOUT, POLLPRI, POLLERR, POLLHUP, POLLNVAL
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    Py_ssize_t read(int fd, void *to, size_t size)
    Py_ssize_t write(int fd, const void *data, size_t size)

cdef extern from "net.h" nogil:
    short NET_POLLRDHUP             # 0 where there is none
    void net_nap_us(long us)
    int net_wake_pair(int *reader, int *writer)

cdef enum:
    EVERYTHING = READY_IN | READY_OUT | READY_EOF | READY_ERROR | READY_URGENT

cdef struct Entry:
    Watch *watch
    uint8_t armed           # READY_ bits still to be reported once; READY_ERROR: has not been reported yet
    uint8_t listener

cdef struct Poll:
    pollfd *fds             # fds[i] belongs to entries[i]
    Entry *entries
    int count, room
    int start               # where the next search for events begins: a full batch must not favour low slots
    int wake_reader, wake_writer


cdef Poller *poller_new() noexcept nogil:
    cdef Poll *poller = <Poll *> calloc(1, sizeof(Poll))
    if poller == NULL:
        return NULL
    poller.wake_reader = poller.wake_writer = -1
    if net_wake_pair(&poller.wake_reader, &poller.wake_writer) < 0 or _grow(poller) < 0:
        poller_free(<Poller *> poller)
        return NULL
    poller.fds[0].fd = poller.wake_reader
    poller.fds[0].events = POLLIN
    poller.count = 1
    return <Poller *> poller


cdef void poller_free(Poller *handle) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    if poller.wake_reader >= 0:
        close(poller.wake_reader)
        close(poller.wake_writer)
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
    """Puts into the set what the entry is armed for; nothing armed: out of the set."""
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
        item.events |= POLLPRI
    item.fd = entry.watch.fd if entry.armed else -1
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
    poller.entries[slot].armed = READY_IN if kind == WATCH_LISTENER else EVERYTHING
    _ask(poller, slot)
    return 0


cdef void poller_rearm(Poller *handle, Watch *watch, uint32_t bits) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    poller.entries[watch.slot].armed |= bits & (READY_IN | READY_OUT)
    _ask(poller, watch.slot)


cdef void poller_move(Poller *handle, Watch *watch, Watch *to) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    to[0] = watch[0]
    poller.entries[to.slot].watch = to


cdef void poller_remove(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    cdef int slot = watch.slot, last = poller.count - 1
    poller.count = last
    if slot != last:
        poller.fds[slot] = poller.fds[last]
        poller.entries[slot] = poller.entries[last]
        poller.entries[slot].watch.slot = slot
    watch.slot = -1


cdef inline uint32_t _report(Poll *poller, int slot) noexcept nogil:
    """What is new about this entry, in our bits; what it reports is disarmed."""
    cdef Entry *entry = &poller.entries[slot]
    cdef short seen = poller.fds[slot].revents
    cdef uint32_t bits = 0
    if entry.listener:
        return READY_IN if seen else 0
    if seen & POLLIN:
        bits |= READY_IN
    if seen & POLLOUT:
        bits |= READY_OUT
    if seen & POLLPRI:
        bits |= READY_IN | READY_URGENT
    if seen & NET_POLLRDHUP:
        bits |= READY_IN | READY_EOF
    if seen & POLLHUP:
        bits |= READY_IN | READY_OUT | READY_EOF
    if seen & (POLLERR | POLLNVAL):
        bits |= READY_IN | READY_OUT | READY_EOF | READY_ERROR
    # After a hang-up nothing new can come but what a rearm asks for: out of the set, or poll would never wait again.
    entry.armed = 0 if seen & (POLLHUP | POLLERR | POLLNVAL) else entry.armed & ~bits
    _ask(poller, slot)
    return bits


cdef int poller_wait(Poller *handle, Ready *events, int room, int64_t timeout_ns) noexcept nogil:
    cdef Poll *poller = <Poll *> handle
    cdef int i, n, slot, count = 0, timeout_ms = -1
    cdef int64_t ms
    cdef char drain[64]
    cdef uint32_t bits
    if timeout_ns >= 0:
        ms = (timeout_ns + 999999) // 1000000
        timeout_ms = <int> ms if ms < 0x7fffffff else 0x7fffffff
    n = poll(poller.fds, poller.count, timeout_ms)
    while n < 0:
        if errno == ENOMEM or errno == EAGAIN:      # no memory for the set: it passes
            net_nap_us(1000)
            return 0
        if errno != EINTR:
            return -errno
        n = poll(poller.fds, poller.count, 0)       # see poller_epoll.pyx
    if n > 0 and poller.fds[0].revents:
        while read(poller.wake_reader, drain, sizeof(drain)) == sizeof(drain):
            pass
        n -= 1
        events[0].tag = <uint64_t> -1
        events[0].bits = 0
        count = 1
    for i in range(poller.count - 1):
        if n == 0 or count == room:
            break
        slot = 1 + (poller.start + i) % (poller.count - 1)
        if poller.fds[slot].revents == 0:
            continue
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
    cdef Poll *poller = <Poll *> handle
    if write(poller.wake_writer, "w", 1) < 0:
        pass                        # a full pipe (EAGAIN) wakes as well


cdef const char *poller_name() noexcept nogil:
    return "poll"
