# kqueue(2), for macOS and the BSDs: the contract is in poller.pxd.
#
# A stream has two filters, EVFILT_READ and EVFILT_WRITE, added in one call with EV_CLEAR and not changed afterwards.
# Each filter reports its own edges: a socket that is ready in both directions makes two events, in either order,
# perhaps in two batches. Every ACK that makes room in the send queue is a write edge.
#
# What is used of an event: `filter`, `udata`, and errors. `data` is not used: the systems count it differently. EV_EOF
# is a hint; on EVFILT_WRITE our own shutdown() sets it too, so it counts as an error only if `fflags` holds one.
#
# A trap: recv stops at an urgent mark here as well, and not every kqueue reports one (macOS and OpenBSD have NOTE_OOB,
# FreeBSD and NetBSD have nothing). So every read edge sets READY_URGENT, "there may be a mark": reads go on until one
# would block.
#
# Closing a descriptor removes its filters, and with them the events that were not fetched yet. Unlike with epoll, a
# copy of the descriptor does not keep them, neither in this process nor in a forked child: a kqueue is not inherited.
from libc.errno cimport errno, EINTR
from libc.stdlib cimport calloc, free
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.fcntl cimport F_SETFD, FD_CLOEXEC, fcntl
from posix.time cimport timespec
from posix.unistd cimport close, getpid
from tcpproxy._core.tag cimport tag_wake

cdef extern from "<sys/types.h>" nogil:
    pass

cdef extern from "<sys/event.h>" nogil:
    """
    #ifndef EVFILT_USER
    #error "this kqueue has no EVFILT_USER (NetBSD 10 and OpenBSD 7.7 do): build with TCPPROXY_POLLER=poll"
    #endif
    _Static_assert(sizeof(void *) == 8, "a tag of 64 bits travels in udata: build with TCPPROXY_POLLER=poll");
    """
    ctypedef struct kevent_t "struct kevent":
        uintptr_t ident
        int filter
        uint32_t flags
        uint32_t fflags
        void *udata
    int EVFILT_READ, EVFILT_WRITE, EVFILT_USER
    uint32_t EV_ADD, EV_DELETE, EV_CLEAR, EV_EOF, EV_ERROR, NOTE_TRIGGER
    int kqueue()
    int kevent(int kq, const kevent_t *changes, int change_count, kevent_t *events, int room, const timespec *timeout)

cdef int64_t DAY_NS = 86400 * <int64_t> 1000000000

cdef struct Kqueue:
    int kq
    int owner                       # pid of the process that made it
    kevent_t batch[POLLER_BATCH]


cdef inline int _change(Kqueue *poller, kevent_t *changes, int count) noexcept nogil:
    """Applies changes without fetching events: 0, or -errno of the first that was refused."""
    cdef timespec now
    now.tv_sec = now.tv_nsec = 0
    while kevent(poller.kq, changes, count, NULL, 0, &now) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef inline void _set(kevent_t *change, uintptr_t ident, int filter, uint32_t flags, uint64_t tag) noexcept nogil:
    change.ident = ident
    change.filter = filter
    change.flags = flags
    change.udata = <void *> tag


cdef Poller *poller_new() noexcept nogil:
    cdef Kqueue *poller = <Kqueue *> calloc(1, sizeof(Kqueue))
    if poller == NULL:
        return NULL
    poller.owner = getpid()
    poller.kq = kqueue()
    _set(&poller.batch[0], 0, EVFILT_USER, EV_ADD | EV_CLEAR, tag_wake())
    if poller.kq < 0 or fcntl(poller.kq, F_SETFD, FD_CLOEXEC) < 0 or _change(poller, poller.batch, 1) < 0:
        poller_free(<Poller *> poller)
        return NULL
    return <Poller *> poller


cdef void poller_free(Poller *handle) noexcept nogil:
    cdef Kqueue *poller = <Kqueue *> handle
    if poller.kq >= 0 and poller.owner == getpid():     # a forked child has no kqueue: the number may be another file's
        close(poller.kq)
    free(poller)


cdef int poller_add(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef kevent_t changes[2]
    memset(changes, 0, sizeof(changes))
    if kind == WATCH_LISTENER:
        _set(&changes[0], watch.fd, EVFILT_READ, EV_ADD, watch.tag)
        return _change(<Kqueue *> handle, changes, 1)
    # If the second is refused, closing the socket removes the first.
    _set(&changes[0], watch.fd, EVFILT_READ, EV_ADD | EV_CLEAR, watch.tag)
    _set(&changes[1], watch.fd, EVFILT_WRITE, EV_ADD | EV_CLEAR, watch.tag)
    return _change(<Kqueue *> handle, changes, 2)


cdef void poller_rearm(Poller *handle, Watch *watch, uint32_t bits) noexcept nogil:
    pass


cdef void poller_move(Poller *handle, Watch *watch, Watch *to) noexcept nogil:
    to[0] = watch[0]


cdef void poller_remove(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef kevent_t change[1]
    if kind == WATCH_LISTENER:                          # it may be added again, when accepting resumes
        memset(change, 0, sizeof(change))
        _set(change, watch.fd, EVFILT_READ, EV_DELETE, watch.tag)
        _change(<Kqueue *> handle, change, 1)


cdef inline uint32_t _bits(const kevent_t *event) noexcept nogil:
    if event.flags & EV_ERROR or (event.flags & EV_EOF and event.fflags):
        return READY_IN | READY_OUT | READY_EOF | READY_ERROR | READY_URGENT
    if event.filter == EVFILT_WRITE:
        return READY_OUT
    return READY_IN | READY_URGENT | (READY_EOF if event.flags & EV_EOF else 0)


cdef int poller_wait(Poller *handle, Ready *events, int room, int64_t timeout_ns, bint exact) noexcept nogil:
    cdef Kqueue *poller = <Kqueue *> handle
    cdef timespec timeout
    cdef timespec *limit = &timeout
    cdef int i, n
    if timeout_ns < 0:
        limit = NULL
    else:
        # At most a day: some kernels refuse time-outs of more than three years.
        timeout.tv_sec = timeout_ns // 1000000000 if timeout_ns < DAY_NS else 86400
        timeout.tv_nsec = timeout_ns % 1000000000
    n = kevent(poller.kq, NULL, 0, poller.batch, room if room < POLLER_BATCH else POLLER_BATCH, limit)
    while n < 0:
        if errno != EINTR:
            return -errno
        timeout.tv_sec = timeout.tv_nsec = 0            # see poller_epoll.pyx
        n = kevent(poller.kq, NULL, 0, poller.batch, room if room < POLLER_BATCH else POLLER_BATCH, &timeout)
    for i in range(n):
        events[i].tag = <uint64_t> poller.batch[i].udata
        events[i].bits = 0 if poller.batch[i].filter == EVFILT_USER else _bits(&poller.batch[i])
    return n


cdef void poller_wake(Poller *handle) noexcept nogil:
    cdef kevent_t trigger[1]
    memset(trigger, 0, sizeof(trigger))
    _set(trigger, 0, EVFILT_USER, 0, tag_wake())          # the tag again: some systems store the udata of every change
    trigger[0].fflags = NOTE_TRIGGER
    _change(<Kqueue *> handle, trigger, 1)


cdef int poller_wait_turns(Poller *_handle) noexcept nogil:
    return 1


cdef const char *poller_name() noexcept nogil:
    return "kqueue"
