from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.timers cimport TIMER_KINDS, TIMER_NONE, Timer, Timers, timers_arm, timers_cancel, timers_pop, timers_wait_ns

KINDS = range(TIMER_NONE + 1, TIMER_KINDS)


cdef class TimersDoor:
    """Timers with the numbers 0, 1, ..."""
    cdef Timers it
    cdef Timer *timers

    def __cinit__(self, size_t count, lengths):
        self.timers = <Timer *> calloc(count, sizeof(Timer))
        for i in range(count):
            self.timers[i].owner = &self.timers[i]
        for kind, length_ns in lengths.items():
            self.it.lists[<int> kind].length_ns = length_ns

    def __dealloc__(self):
        free(self.timers)

    def arm(self, int number, int kind, uint64_t now_ns):
        timers_arm(&self.it, &self.timers[number], kind, now_ns)

    def cancel(self, int number):
        timers_cancel(&self.it, &self.timers[number])

    def pop(self, uint64_t now_ns):
        """(number, kind), or None."""
        cdef int kind = 0
        cdef Timer *timer = timers_pop(&self.it, now_ns, &kind)
        return None if timer == NULL else (<Timer *> timer.owner - self.timers, kind)

    def wait_ns(self, uint64_t now_ns):
        return timers_wait_ns(&self.it, now_ns)

    def kind(self, int number):
        return self.timers[number].kind
