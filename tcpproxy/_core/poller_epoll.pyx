# epoll(7): the contract is in poller.pxd.
#
# A stream is registered once, edge-triggered, for all kinds of events: no epoll_ctl while bytes flow. `poller_rearm`
# does nothing, because the kernel reports every edge that follows a would-block.
#
# A trap: epoll ties a registration to the pair (descriptor number, open file). Closing the last descriptor of an open
# file removes the registration, which saves one epoll_ctl per socket. But a copy of the descriptor in a forked child
# keeps it, and epoll goes on reporting under the old tag. The generation in the tag makes such events harmless, and
# edges cannot make the loop spin. The child closes its copies in resources_close_after_fork.
from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free
from libc.stdint cimport int64_t, uint32_t, uint64_t
from tcpproxy._core.tag cimport tag_wake

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLET, EPOLLEXCLUSIVE
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from * nogil:
    """
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_epoll_pwait2        /* since Linux 5.11; the headers got it later */
    #define SYS_epoll_pwait2 441
    #endif
    /* epoll_wait with a time-out in ns. It fails with ENOSYS if a seccomp filter is in force, which might kill the process
     * for a call that it does not know. Not inlined: `limit` would cost every other wait a check of the stack. */
    __attribute__((noinline)) static int epoll_wait_ns(int epfd, struct epoll_event *events, int room, int64_t ns)
    {
        struct { int64_t seconds, ns; } limit = {ns / 1000000000, ns % 1000000000};
        if (prctl(PR_GET_SECCOMP) > 0) {
            errno = ENOSYS;
            return -1;
        }
        return (int)syscall(SYS_epoll_pwait2, epfd, events, room, &limit, NULL, 0);
    }
    """
    int epoll_wait_ns(int epfd, epoll_event *events, int room, int64_t ns)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    Py_ssize_t write(int fd, const void *data, size_t size)

cdef struct Epoll:
    int epfd
    bint inexact                    # the system has no epoll_pwait2
    int wakefd                      # eventfd, edge-triggered: written, never read
    epoll_event batch[POLLER_BATCH]


cdef Poller *poller_new() noexcept nogil:
    cdef epoll_event event
    cdef Epoll *poller = <Epoll *> calloc(1, sizeof(Epoll))
    if poller == NULL:
        return NULL
    poller.epfd = epoll_create1(EPOLL_CLOEXEC)
    poller.wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = tag_wake()
    if poller.epfd < 0 or poller.wakefd < 0 or epoll_ctl(poller.epfd, EPOLL_CTL_ADD, poller.wakefd, &event) < 0:
        poller_free(<Poller *> poller)
        return NULL
    return <Poller *> poller


cdef void poller_free(Poller *handle) noexcept nogil:
    cdef Epoll *poller = <Epoll *> handle
    if poller.epfd >= 0:
        close(poller.epfd)
    if poller.wakefd >= 0:
        close(poller.wakefd)
    free(poller)


cdef int poller_add(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef Epoll *poller = <Epoll *> handle
    cdef epoll_event event
    event.data.u64 = watch.tag
    if kind == WATCH_LISTENER:
        event.events = EPOLLIN | EPOLLEXCLUSIVE     # one connection wakes one worker, not all
    else:
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET
    return 0 if epoll_ctl(poller.epfd, EPOLL_CTL_ADD, watch.fd, &event) == 0 else -errno


cdef void poller_rearm(Poller *handle, Watch *watch, uint32_t bits) noexcept nogil:
    pass


cdef void poller_move(Poller *handle, Watch *watch, Watch *to) noexcept nogil:
    to[0] = watch[0]


cdef void poller_remove(Poller *handle, Watch *watch, int kind) noexcept nogil:
    cdef Epoll *poller = <Epoll *> handle
    cdef epoll_event event
    if kind == WATCH_LISTENER:                      # the other workers have copies: closing ours would not remove it
        event.events = 0
        epoll_ctl(poller.epfd, EPOLL_CTL_DEL, watch.fd, &event)


cdef inline uint32_t _bits(uint32_t events) noexcept nogil:
    cdef uint32_t bits = 0
    if events & EPOLLIN:
        bits |= READY_IN
    if events & EPOLLOUT:
        bits |= READY_OUT
    if events & EPOLLRDHUP:
        bits |= READY_IN | READY_EOF
    if events & EPOLLPRI:
        bits |= READY_IN | READY_URGENT
    if events & EPOLLHUP:
        bits |= READY_IN | READY_OUT | READY_EOF
    if events & EPOLLERR:
        bits |= READY_IN | READY_OUT | READY_EOF | READY_ERROR
    return bits


cdef inline int _wait(Epoll *poller, int room, int64_t timeout_ns, bint exact) noexcept nogil:
    cdef int timeout_ms = -1, n
    cdef int64_t ms
    if exact and timeout_ns > 0 and not poller.inexact:
        n = epoll_wait_ns(poller.epfd, poller.batch, room, timeout_ns)
        if n >= 0 or errno == EINTR:
            return n
        poller.inexact = True
    if timeout_ns >= 0:
        ms = (timeout_ns + 999999) // 1000000
        timeout_ms = <int> ms if ms < 0x7fffffff else 0x7fffffff
    return epoll_wait(poller.epfd, poller.batch, room, timeout_ms)


cdef int poller_wait(Poller *handle, Ready *events, int room, int64_t timeout_ns, bint exact) noexcept nogil:
    cdef Epoll *poller = <Epoll *> handle
    cdef int i, n
    room = min(room, POLLER_BATCH)
    n = _wait(poller, room, timeout_ns, exact)
    while n < 0:
        if errno != EINTR:
            return -errno
        # Poll once more without waiting: after SIGSTOP and SIGCONT timers are due, but bytes that re-arm them may be
        # ready as well, and have to be handled first.
        n = epoll_wait(poller.epfd, poller.batch, room, 0)
    for i in range(n):
        events[i].tag = poller.batch[i].data.u64
        events[i].bits = 0 if events[i].tag == tag_wake() else _bits(poller.batch[i].events)
    return n


cdef void poller_wake(Poller *handle) noexcept nogil:
    cdef Epoll *poller = <Epoll *> handle
    cdef uint64_t one = 1
    if write(poller.wakefd, &one, sizeof(one)) < 0:
        pass                        # EAGAIN: the counter is full, so an edge is already pending


cdef int poller_wait_turns(Poller *_handle) noexcept nogil:
    return 1


cdef const char *poller_name() noexcept nogil:
    return "epoll"
