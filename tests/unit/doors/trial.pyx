from libc.stdint cimport uint64_t
from tcpproxy._core.thread cimport thread_cpu_time
from tcpproxy._core.trial cimport Trial, trial_restart, trial_count, trial_due, trial_init, trial_arm


def processor_time():
    """Of this thread, 0: not known."""
    return thread_cpu_time()


cdef class TrialDoor:
    cdef Trial it

    def __cinit__(self, uint64_t sample, uint64_t probe, uint64_t time, uint64_t cost, uint64_t busy_batch):
        trial_init(&self.it, sample, probe, time, cost, busy_batch)

    def count(self, uint64_t units, uint64_t took_ns):
        trial_count(&self.it, units, took_ns)

    def restart(self):
        trial_restart(&self.it)

    def due(self):
        return trial_due(&self.it)

    def arm(self):
        return trial_arm(&self.it)
