# Deadlines: the model is in timers.pxd.
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    static __inline unsigned lowest_bit(unsigned bits) { unsigned long at; _BitScanForward(&at, bits); return at; }
    #else
    static inline unsigned lowest_bit(unsigned bits) { return (unsigned)__builtin_ctz(bits); }
    #endif
    """
    uint32_t lowest_bit(uint32_t bits)          # its number; `bits` is not 0


cdef void timers_arm(Timers *timers, Timer *timer, int kind, uint64_t now_ns) noexcept nogil:
    cdef TimerList *line = &timers.lists[kind]
    timers_cancel(timers, timer)
    timer.kind = kind
    timer.due_ns = now_ns + line.length_ns
    if timer.due_ns < timers.earliest_ns:
        timers.earliest_ns = timer.due_ns
    timer.previous = line.last
    timer.next = NULL
    if line.last != NULL:
        line.last.next = timer
    else:
        line.first = timer
        timers.armed |= <uint32_t> 1 << kind
    line.last = timer


cdef void timers_cancel(Timers *timers, Timer *timer) noexcept nogil:
    cdef TimerList *line = &timers.lists[timer.kind]
    if timer.kind == TIMER_NONE:
        return
    if timer.previous != NULL:
        timer.previous.next = timer.next
    else:
        line.first = timer.next
    if timer.next != NULL:
        timer.next.previous = timer.previous
    else:
        line.last = timer.previous
        if line.last == NULL:
            timers.armed &= ~(<uint32_t> 1 << timer.kind)
    timer.previous = timer.next = NULL
    timer.kind = TIMER_NONE


# --- alarms ---

cdef Alarm *_meld(Alarm *one, Alarm *other) noexcept nogil:
    """Makes one heap of two; the root that is due later becomes a child of the other. Either may be NULL."""
    cdef Alarm *first = one
    if one == NULL or other == NULL:
        return other if one == NULL else one
    if other.due_ns < one.due_ns:
        first = other
        other = one
    other.previous = first
    other.next = first.child
    if other.next != NULL:
        other.next.previous = other
    first.child = other
    return first


cdef Alarm *_meld_all(Alarm *alarm) noexcept nogil:
    """Makes one heap of an alarm and those behind it: in pairs from the front, then the pairs from the back."""
    cdef Alarm *pairs = NULL
    cdef Alarm *pair
    cdef Alarm *other
    cdef Alarm *root = NULL
    while alarm != NULL:
        pair = alarm
        other = pair.next
        alarm = other.next if other != NULL else NULL
        pair.next = NULL
        if other != NULL:
            other.next = NULL
        pair = _meld(pair, other)
        pair.next = pairs
        pairs = pair
    while pairs != NULL:
        pair = pairs
        pairs = pair.next
        pair.next = NULL
        root = _meld(root, pair)
    if root != NULL:
        root.previous = NULL
    return root


cdef void alarms_set(Timers *timers, Alarm *alarm, int kind, uint64_t due_ns) noexcept nogil:
    alarms_cancel(timers, alarm)
    alarm.kind = kind
    alarm.due_ns = due_ns
    timers.alarms = _meld(timers.alarms, alarm)
    timers.alarm_count += 1


cdef void alarms_cancel(Timers *timers, Alarm *alarm) noexcept nogil:
    cdef Alarm *children
    if alarm.kind == TIMER_NONE:
        return
    children = _meld_all(alarm.child)
    if timers.alarms == alarm:
        timers.alarms = children
    else:
        if alarm.previous.child == alarm:
            alarm.previous.child = alarm.next
        else:
            alarm.previous.next = alarm.next
        if alarm.next != NULL:
            alarm.next.previous = alarm.previous
        timers.alarms = _meld(timers.alarms, children)
    alarm.child = alarm.next = alarm.previous = NULL
    alarm.kind = TIMER_NONE
    timers.alarm_count -= 1


cdef inline uint64_t _alarms_due_ns(const Timers *timers) noexcept nogil:
    """When an alarm, if one is set, is popped in another batch than the last ones."""
    return max(timers.alarms.due_ns,
               timers.served_ns + min(timers.alarm_count * ALARMS_GAP_NS, <uint64_t> ALARMS_GAP_MOST_NS))


# --- both ---

cdef void *timers_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil:
    cdef Timer *timer
    cdef uint64_t earliest_ns = UINT64_MAX
    cdef int i
    if now_ns < timers.earliest_ns:
        return NULL
    for i in range(TIMER_NONE + 1, TIMER_KINDS):
        timer = timers.lists[i].first
        if timer == NULL:
            continue
        if timer.due_ns <= now_ns:
            timers_cancel(timers, timer)
            kind[0] = i
            return <char *> timer - timer.place
        if timer.due_ns < earliest_ns:
            earliest_ns = timer.due_ns
    timers.earliest_ns = earliest_ns
    return NULL


cdef void *alarms_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil:
    cdef Alarm *alarm = timers.alarms
    if alarm == NULL or alarm.due_ns > now_ns:
        return NULL
    if now_ns != timers.served_ns and now_ns < _alarms_due_ns(timers):      # a batch that pops some pops all that are due
        return NULL
    timers.served_ns = now_ns
    kind[0] = alarm.kind
    alarms_cancel(timers, alarm)
    return alarm.owner


cdef int64_t timers_wait_ns(Timers *timers, uint64_t now_ns) noexcept nogil:
    cdef uint64_t due = _alarms_due_ns(timers) if timers.alarms != NULL else UINT64_MAX
    cdef uint32_t armed = timers.armed
    while armed:
        due = min(due, timers.lists[lowest_bit(armed)].first.due_ns)
        armed &= armed - 1
    if due == UINT64_MAX:
        return -1
    return <int64_t> (due - now_ns) if due > now_ns else 0
