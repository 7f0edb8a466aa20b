from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memset
from tcpproxy._core.events cimport EventRecord, EventRing, events_claim, events_empty, events_free, events_init, \
    events_kind_name, events_publish, events_reason_name, events_sleep, events_take
from tcpproxy._core.thread cimport thread_nap_us


def names(bint reasons):
    """Of all kinds, or of all reasons, in the order of their numbers."""
    cdef const char *name
    cdef int number = 0
    found = []
    assert events_kind_name(-1) == NULL and events_reason_name(-1) == NULL
    while True:
        name = events_reason_name(number) if reasons else events_kind_name(number)
        if name == NULL:
            return tuple(found)
        found.append(name.decode())
        number += 1


cdef class RingDoor:
    cdef EventRing it

    def __cinit__(self, uint64_t room, int bell, uint64_t wanted):
        if events_init(&self.it, room, bell) < 0:
            raise MemoryError
        self.it.wanted = wanted

    def __dealloc__(self):
        events_free(&self.it)

    def claim(self, int kind):
        """None, or whether the record was clean but for its kind."""
        cdef EventRecord clean
        memset(&clean, 0, sizeof(clean))
        clean.kind = kind
        record = events_claim(&self.it, kind)
        return None if record == NULL else memcmp(record, &clean, sizeof(clean)) == 0

    def write(self, int kind, uint64_t number):
        return self.place(kind, number) is not None

    def place(self, int kind, uint64_t number):
        """Writes a record. Returns its place in the memory, or None: it was lost."""
        record = events_claim(&self.it, kind)
        if record == NULL:
            return None
        record.to_upstream = number
        record.error = -1
        events_publish(&self.it)
        return record - self.it.records

    def write_many(self, int kind, uint64_t count):
        """The numbers up to `count`, as fast as the reader makes room; for a thread."""
        cdef EventRecord *record
        cdef uint64_t i
        with nogil:
            for i in range(count):
                record = events_claim(&self.it, kind)
                while record == NULL:
                    thread_nap_us(20)
                    record = events_claim(&self.it, kind)
                record.to_upstream = i
                events_publish(&self.it)

    def take(self):
        """(kind, number), or None."""
        cdef EventRecord record
        return (record.kind, record.to_upstream) if events_take(&self.it, &record) else None

    def sleep(self):
        """As the reader does. Returns whether it may really sleep."""
        events_sleep(&self.it)
        return bool(events_empty(&self.it))

    @property
    def lost(self):
        return self.it.lost

    @property
    def asleep(self):
        return bool(self.it.asleep)
