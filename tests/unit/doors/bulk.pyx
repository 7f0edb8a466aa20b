from libc.stdint cimport uint64_t
from tcpproxy._core.bulk cimport BULK_OVER_NS, Bulk, bulk_count, bulk_init, bulk_judge

OVER = BULK_OVER_NS


cdef class BulkDoor:
    """Of the calling thread: `l` in its state: SCHED_BATCH."""
    cdef Bulk it
    cdef readonly uint64_t total

    def __cinit__(self):
        bulk_init(&self.it)

    def count(self, uint64_t moved, uint64_t now_ns, *, bint bulk_only=True):
        """A batch. True: judge() is due."""
        self.total += moved
        return bulk_count(&self.it, self.total, bulk_only, now_ns)

    def judge(self, uint64_t group_moved):
        bulk_judge(&self.it, group_moved)

    @property
    def state(self):
        return "".join(name for name, on in (("b", self.it.on), ("s", self.it.steady), ("l", self.it.batch_policy)) if on)
