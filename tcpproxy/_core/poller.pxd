# THE POLLER CONTRACT
#
# A poller reports which sockets of one worker are ready. poller_epoll.pyx, poller_kqueue.pyx and poller_poll.pyx
# implement the functions below, all of them, in this order; setup.py compiles one of them as this module.
#
# Watching. A stream is added once, and removed right before it is closed. A listener may be removed and added again while
# it is open. The owner fills `fd` and `tag`; `slot` belongs to the poller. The Watch stays at its address until
# `poller_move` or `poller_remove`.
#
#   WATCH_STREAM    edge-triggered. Reports READY_IN, READY_OUT, READY_EOF, READY_ERROR, READY_URGENT; on `poller_add` those
#                   that are true at that time. The owner keeps the bits. It clears READY_IN or READY_OUT only after a call
#                   that would have blocked (or a read that proves the socket empty), and then calls `poller_rearm` with
#                   that bit. After that call the poller must report the bit when it becomes true. A bit that is reported
#                   without being true is harmless; a bit that is true and never reported stalls the connection.
#   WATCH_LISTENER  level-triggered. Reports READY_IN as long as a connection waits. Several pollers may watch one listener;
#                   it is enough to wake one of them.
#
# Bits. The poller's bits are hints; only recv and send tell the state of a socket. An error or a full hang-up is
# reported together with READY_IN and READY_OUT. READY_EOF: the peer may have ended its direction, so a short read no
# longer means "drained". READY_URGENT: an urgent mark was seen. A poller that cannot detect one of these two
# has two choices. It sets the bit with every READY_IN, so that the owner reads until EAGAIN. Or it never sets the bit, and
# reports READY_IN after every poller_rearm while bytes or an end of file are unread. A hang-up, an
# error or an urgent mark must be reported only once for one cause, or the loop would spin.
#
# Waiting. `poller_wait` fills `events` and returns their number, 0 after a time-out, or -errno (never -EINTR). A
# wake-up is an event as well: its tag is tag_wake(), its bits are 0. It is reported once, so a caller that polls without
# waiting must handle it too. `timeout_ns` < 0: waits without limit; 0: does not wait. Time-outs are rounded up: rounded
# down, the wait would end before a timer is due, and the loop would spin until it is. By up to a millisecond; with `exact` only
# by what the system needs, if it can do that.
#
# `poller_wake` may be called by any thread at any time. The wait in progress, or else the next one, ends early.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_socket

cdef enum:                  # bits of an event
    READY_IN = 1
    READY_OUT = 2
    READY_EOF = 4
    READY_ERROR = 8
    READY_URGENT = 16

cdef enum:
    # Events taken at once, by a worker and from the kernel. A choice, not a measurement; what more is ready comes with the next
    # wait.
    POLLER_BATCH = 256

cdef enum:                  # kinds of watched sockets
    WATCH_STREAM = 0
    WATCH_LISTENER = 1

cdef struct Watch:           # a socket that is watched
    net_socket fd
    int slot                # the poller's own data
    uint64_t tag            # returned with every event; see tag.pxd

cdef struct Ready:           # an event
    uint64_t tag
    uint32_t bits           # READY_ bits

cdef extern from * nogil:
    """
    typedef struct Poller Poller;   /* opaque: each implementation casts it to its own struct */
    """
    ctypedef struct Poller

cdef Poller *poller_new() noexcept nogil                # NULL: no descriptors or no memory
cdef void poller_free(Poller *poller) noexcept nogil    # leaves the watched sockets open
cdef int poller_add(Poller *poller, Watch *watch, int kind) noexcept nogil     # 0 or -errno
cdef void poller_rearm(Poller *poller, Watch *watch, uint32_t bits) noexcept nogil
cdef void poller_move(Poller *poller, Watch *watch, Watch *to) noexcept nogil  # `to` replaces `watch`
cdef void poller_remove(Poller *poller, Watch *watch, int kind) noexcept nogil
cdef int poller_wait(Poller *poller, Ready *events, int room, int64_t timeout_ns, bint exact) noexcept nogil
cdef void poller_wake(Poller *poller) noexcept nogil
# How many turns of bulk one call of poller_wait is worth: more than 1 if it takes time for each socket
cdef int poller_wait_turns(Poller *poller) noexcept nogil
cdef const char *poller_name() noexcept nogil
