from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from tcpproxy._core.bucket cimport Limit, bucket_charge, bucket_due_ns, bucket_reserve, bucket_room, limit_set


cdef class BucketDoor:
    cdef Limit limit
    cdef uint64_t it

    def __cinit__(self, uint64_t rate, uint64_t burst=0):
        limit_set(&self.limit, rate, burst)

    def due_ns(self, uint64_t held, uint64_t now_ns):
        return bucket_due_ns(&self.it, &self.limit, held, now_ns)

    def room(self, uint64_t now_ns):
        return bucket_room(&self.it, &self.limit, now_ns)

    def charge(self, uint64_t size, uint64_t now_ns):
        bucket_charge(&self.it, &self.limit, size, now_ns)

    def reserve(self, uint64_t size, uint64_t now_ns):
        return bucket_reserve(&self.it, &self.limit, size, now_ns)

    def reserve_often(self, uint64_t size, uint64_t now_ns, int count):
        """Without the GIL, so that threads contend."""
        cdef uint64_t *found = <uint64_t *> malloc(count * sizeof(uint64_t))
        cdef int i
        with nogil:
            for i in range(count):
                found[i] = bucket_reserve(&self.it, &self.limit, size, now_ns)
        try:
            return [found[i] for i in range(count)]
        finally:
            free(found)

    def charge_often(self, uint64_t size, uint64_t now_ns, int count):
        """Without the GIL, so that threads contend."""
        cdef int _
        with nogil:
            for _ in range(count):
                bucket_charge(&self.it, &self.limit, size, now_ns)

    @property
    def used_up_ns(self):
        return self.it

    @property
    def burst_ns(self):
        return self.limit.burst_ns
