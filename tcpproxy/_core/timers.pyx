# Deadlines: the model is in timers.pxd.
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t


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
    timer.previous = timer.next = NULL
    timer.kind = TIMER_NONE


cdef Timer *timers_pop(Timers *timers, uint64_t now_ns, int *kind) noexcept nogil:
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
            return timer
        if timer.due_ns < earliest_ns:
            earliest_ns = timer.due_ns
    timers.earliest_ns = earliest_ns
    return NULL


cdef int64_t timers_wait_ns(Timers *timers, uint64_t now_ns) noexcept nogil:
    cdef uint64_t due = 0
    cdef Timer *timer
    cdef int kind
    for kind in range(TIMER_NONE + 1, TIMER_KINDS):
        timer = timers.lists[kind].first
        if timer != NULL and (due == 0 or timer.due_ns < due):
            due = timer.due_ns
    if due == 0:
        return -1
    return <int64_t> (due - now_ns) if due > now_ns else 0
