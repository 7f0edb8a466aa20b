from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.timers cimport ALARMS_GAP_MOST_NS, ALARMS_GAP_NS, TIMER_KINDS, TIMER_NONE, TIMER_SHAPER, Alarm, Timer, \
    Timers, alarms_cancel, alarms_pop, alarms_set, timer_init, timers_arm, timers_cancel, timers_pop, timers_wait_ns

SHAPER = TIMER_SHAPER
GAP = ALARMS_GAP_NS
GAP_MOST = ALARMS_GAP_MOST_NS
KINDS = range(TIMER_NONE + 1, TIMER_KINDS)


cdef struct Owner:
    uint64_t first
    Timer timer
    Alarm alarm


cdef class TimersDoor:
    """Owners with the numbers 0, 1, ..., each with a timer and an alarm."""
    cdef Timers it
    cdef Owner *owners

    def __cinit__(self, size_t count, lengths):
        self.owners = <Owner *> calloc(count, sizeof(Owner))
        for i in range(count):
            timer_init(&self.owners[i].timer, &self.owners[i])
            self.owners[i].alarm.owner = &self.owners[i]
        for kind, length_ns in lengths.items():
            self.it.lists[<int> kind].length_ns = length_ns

    def __dealloc__(self):
        free(self.owners)

    def arm(self, int number, int kind, uint64_t now_ns):
        timers_arm(&self.it, &self.owners[number].timer, kind, now_ns)

    def cancel(self, int number):
        timers_cancel(&self.it, &self.owners[number].timer)

    def pop(self, uint64_t now_ns):
        """(number, kind), or None. Alarms first."""
        cdef int kind = 0
        cdef Owner *owner = <Owner *> alarms_pop(&self.it, now_ns, &kind)
        if owner == NULL:
            owner = <Owner *> timers_pop(&self.it, now_ns, &kind)
        return None if owner == NULL else (owner - self.owners, kind)

    def set(self, int number, uint64_t due_ns):
        alarms_set(&self.it, &self.owners[number].alarm, TIMER_SHAPER, due_ns)

    def unset(self, int number):
        alarms_cancel(&self.it, &self.owners[number].alarm)

    def wait_ns(self, uint64_t now_ns):
        return timers_wait_ns(&self.it, now_ns)

    def kind(self, int number):
        return self.owners[number].timer.kind
