# Deadlines: timers and alarms.
#
# All timers of one kind have the same length, so a list in arming order is also in order of due time. Arming, re-arming and
# cancelling are O(1); the next due time is the earliest of the lists' heads.
#
# An alarm has a due time of its own. Alarms are in an intrusive pairing heap: setting one is O(1), allocates nothing and cannot
# fail; cancelling is O(log n), amortized. Only relays with faults or rates have one, and they get their turns by it.
#
# One wake-up serves many alarms: after alarms were popped, the next ones are not due before a gap that grows with the number of
# those that are set. So an alarm is late by at most the gap, and only if it follows another one that closely; a lone one never
# is. As many are set as come in the time that they are set for. So the gap is a share of that time: 1 % at 1,000 alarms a second.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:                  # measured: docs/decisions.md, "Many delays at a time"
    ALARMS_GAP_NS = 10000           # of each alarm
    ALARMS_GAP_MOST_NS = 1000000    # of all together

cdef enum:                  # the kinds; TIMER_NONE: not armed
    TIMER_NONE = 0
    TIMER_CONNECT           # upstream must be connected by then, name lookup included
    TIMER_STAGGER           # start the next connection attempt (RFC 8305)
    TIMER_KEEPALIVE         # set the keepalive options: shorter connections save these calls
    TIMER_UNACKED           # check a side with unacknowledged bytes, by keepalive's rule (net_unacked)
    TIMER_IDLE              # no byte in either direction for this long
    TIMER_HALF_CLOSE        # one direction has ended, and no byte has moved for this long
    TIMER_LINGER            # only queued bytes are left to send, and none has left the kernel for this long
    TIMER_FLUSH             # check whether the kernel has sent what a reset would destroy
    TIMER_STUCK             # the same, after a check that saw no progress
    TIMER_RETRY             # connect again: a UNIX socket's backlog was full
    TIMER_HEADER            # the PROXY header of a client must be complete by then
    TIMER_KINDS             # the number of lists
    TIMER_SHAPER = TIMER_KINDS      # alarm: bytes that a shaper holds are due
    TIMER_RATE              # alarm: a direction may read again
    TIMER_SHARE             # alarm: a target's share of the time to connect is over

cdef struct Timer:
    Timer *previous
    Timer *next
    uint64_t due_ns
    uint32_t place          # bytes from the beginning of its owner to the timer
    uint8_t kind            # TIMER_NONE: not armed

cdef struct TimerList:
    Timer *first            # the one that is due first
    Timer *last
    uint64_t length_ns

cdef struct Alarm:
    Alarm *child            # the first one
    Alarm *next             # of the same parent
    Alarm *previous         # of the same parent; of the first child, the parent
    uint64_t due_ns
    void *owner
    uint8_t kind            # TIMER_NONE: not set

cdef struct Timers:
    TimerList lists[TIMER_KINDS]
    uint32_t armed          # bit 1 << kind: that list is not empty. A wait looks at these lists only
    Alarm *alarms           # the one that is due first: the root of the heap
    uint64_t alarm_count
    uint64_t served_ns      # when the last alarms were popped
    uint64_t earliest_ns    # no timer is due before this time, so a batch need not look

cdef void timers_arm(Timers *timers, Timer *timer, int kind, uint64_t now_ns) noexcept nogil   # re-arms as well
cdef void timers_cancel(Timers *timers, Timer *timer) noexcept nogil                           # does nothing if it is not armed
cdef void alarms_set(Timers *timers, Alarm *alarm, int kind, uint64_t due_ns) noexcept nogil       # also moves one that is set
cdef void alarms_cancel(Timers *timers, Alarm *alarm) noexcept nogil                           # does nothing if it is not set
# Each disarms one that is due. Returns its owner, or NULL if none is due
cdef void *timers_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil
cdef void *alarms_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil
cdef int64_t timers_wait_ns(Timers *timers, uint64_t now_ns) noexcept nogil         # time until the next of both; -1: none is set


cdef inline void timer_init(Timer *timer, void *owner) noexcept nogil:
    """To be called before it is armed; `owner` is what contains it."""
    timer.place = <uint32_t> (<char *> timer - <char *> owner)
