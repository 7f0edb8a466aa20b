# THE POLLER CONTRACT
#
# A poller tells one worker which of its sockets are worth a system call. poller_epoll.pyx, poller_kqueue.pyx and
# poller_poll.pyx implement the functions below, all of them, in this order; setup.py compiles one of them as this module.
#
# Watching. `poller_add` is called once in the life of a socket. The owner fills `fd` and `tag`; `slot` belongs to the
# poller. The Watch stays at its address until `poller_move` or `poller_remove`, which is called right before the socket
# is closed.
#
#   WATCH_STREAM    reports *edges*: READY_IN, READY_OUT, READY_EOF, READY_ERROR, READY_URGENT, first for what is true at the
#                   time of adding. The owner keeps the bits and clears READY_IN or READY_OUT only after a call that would
#                   have blocked (or a read that proves the socket empty), and then says so with `poller_rearm`. After
#                   that, and only after that, the same bit must be reported again once it is true again. Reporting a bit
#                   that is not true is harmless; never reporting one that is true stalls a connection for ever.
#   WATCH_LISTENER  reports READY_IN as long as a connection waits (*level*). Several pollers may watch one listener; it
#                   is enough to wake one of them.
#
# Bits. An error or a full hang-up is reported together with READY_IN and READY_OUT: recv and send tell the truth, the
# poller only hints. READY_EOF says that the peer may have ended its direction, so that a short read no longer
# means "drained". READY_URGENT says that an urgent mark was seen. A poller that cannot know either never sets it and
# then must report READY_IN again after every poller_rearm that finds bytes or an end to read.
# Hang-up, error and urgent mark must not be reported more than once for one cause: the loop would spin.
#
# Waiting. `poller_wait` fills `events` and returns their number, 0 after a time-out, or -errno (never EINTR). A wake-up
# is an event too, with no bits, under the tag of all ones: who polls without waiting must see it, since it is reported
# once. `timeout_ns` < 0 waits for ever, 0 does not wait. Time-outs are rounded up, never down: a timer that is looked at
# too early would be looked at again and again.
#
# `poller_wake` may be called by any thread at any time; the wait under way, or else the next one, ends early.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_socket

cdef enum:
    READY_IN = 1
    READY_OUT = 2
    READY_EOF = 4
    READY_ERROR = 8
    READY_URGENT = 16

cdef enum:
    WATCH_STREAM = 0
    WATCH_LISTENER = 1

cdef struct Watch:
    net_socket fd
    int slot                # the poller's own note
    uint64_t tag            # comes back with every event

cdef struct Ready:
    uint64_t tag
    uint32_t bits

cdef extern from * nogil:
    """
    typedef struct Poller Poller;   /* opaque: each implementation casts it to what it really is */
    """
    ctypedef struct Poller

cdef Poller *poller_new() noexcept nogil                # NULL: no descriptors or no memory
cdef void poller_free(Poller *poller) noexcept nogil    # sockets still watched stay open
cdef int poller_add(Poller *poller, Watch *watch, int kind) noexcept nogil     # 0 or -errno
cdef void poller_rearm(Poller *poller, Watch *watch, uint32_t bits) noexcept nogil
cdef void poller_move(Poller *poller, Watch *watch, Watch *to) noexcept nogil  # `to` takes its place; `watch` is free
cdef void poller_remove(Poller *poller, Watch *watch, int kind) noexcept nogil
cdef int poller_wait(Poller *poller, Ready *events, int room, int64_t timeout_ns) noexcept nogil
cdef void poller_wake(Poller *poller) noexcept nogil
cdef const char *poller_name() noexcept nogil
