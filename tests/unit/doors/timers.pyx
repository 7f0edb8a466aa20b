from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.timers cimport TIMER_KINDS, TIMER_NONE, TIMER_SHAPER, Alarm, Timer, Timers, alarms_cancel, alarms_set, \
    timers_arm, timers_cancel, timers_pop, timers_wait_ns

SHAPER = TIMER_SHAPER
KINDS = range(TIMER_NONE + 1, TIMER_KINDS)


cdef class TimersDoor:
    """Timers with the numbers 0, 1, ..., and as many alarms."""
    cdef Timers it
    cdef Timer *timers
    cdef Alarm *alarms
    cdef char *owners

    def __cinit__(self, size_t count, lengths):
        self.timers = <Timer *> calloc(count, sizeof(Timer))
        self.alarms = <Alarm *> calloc(count, sizeof(Alarm))
        self.owners = <char *> calloc(count, 1)
        for i in range(count):
            self.timers[i].owner = self.alarms[i].owner = &self.owners[i]
        for kind, length_ns in lengths.items():
            self.it.lists[<int> kind].length_ns = length_ns

    def __dealloc__(self):
        free(self.timers)
        free(self.alarms)
        free(self.owners)

    def arm(self, int number, int kind, uint64_t now_ns):
        timers_arm(&self.it, &self.timers[number], kind, now_ns)

    def cancel(self, int number):
        timers_cancel(&self.it, &self.timers[number])

    def pop(self, uint64_t now_ns):
        """(number, kind), or None."""
        cdef int kind = 0
        cdef char *owner = <char *> timers_pop(&self.it, now_ns, &kind)
        return None if owner == NULL else (owner - self.owners, kind)

    def set(self, int number, uint64_t due_ns):
        alarms_set(&self.it, &self.alarms[number], TIMER_SHAPER, due_ns)

    def unset(self, int number):
        alarms_cancel(&self.it, &self.alarms[number])

    def wait_ns(self, uint64_t now_ns):
        return timers_wait_ns(&self.it, now_ns)

    def kind(self, int number):
        return self.timers[number].kind
