# Deadlines. Every kind of time-out has one constant length, so the timers of one kind, kept in arming order, are also in
# order of their due time: arming, re-arming and cancelling are O(1), and the next due time is the least of a few heads.
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:                  # the kinds; TIMER_NONE: not armed
    TIMER_NONE = 0
    TIMER_CONNECT           # upstream must be connected by then (names included)
    TIMER_CLIENT_GONE         # a client that closed without a byte while we connect gets this long
    TIMER_STAGGER           # start the next connection attempt (RFC 8305)
    TIMER_KEEPALIVE           # a connection has lasted long enough to be worth its keepalive options
    TIMER_UNACKED           # look whether a peer that has to answer does, by the rule of keepalive
    TIMER_IDLE              # no byte in either direction
    TIMER_HALF_CLOSE        # no byte since one direction ended
    TIMER_LINGER            # nothing of the last bytes has gone, after a reset or a forced end
    TIMER_FLUSH             # look again whether the kernel has sent what a reset would destroy
    TIMER_STUCK             # the same, where the last look saw no change
    TIMER_KINDS

cdef struct Timer:
    Timer *previous
    Timer *next
    uint64_t due_ns
    void *owner
    uint8_t kind

cdef struct TimerList:
    Timer *first            # due first
    Timer *last
    uint64_t length_ns

cdef struct Timers:
    TimerList lists[TIMER_KINDS]

cdef void timers_arm(Timers *timers, Timer *timer, int kind, uint64_t now_ns) noexcept nogil   # re-arms as well
cdef void timers_cancel(Timers *timers, Timer *timer) noexcept nogil                           # harmless if not armed
cdef Timer *timers_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil      # one that is due, disarmed; or NULL
cdef int64_t timers_wait_ns(Timers *timers, uint64_t now_ns) noexcept nogil            # until the next one; -1: none
