from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_pack
from tcpproxy._core.sources cimport Sources, sources_enter, sources_free, sources_init, sources_leave


cdef class SourcesDoor:
    cdef Sources it
    cdef net_addr address

    def __cinit__(self, uint64_t limit, uint32_t most, uint64_t secret=0):
        if sources_init(&self.it, limit, most, secret) < 0:
            raise MemoryError

    def __dealloc__(self):
        sources_free(&self.it)

    @property
    def slots(self):
        return self.it.mask + 1

    @property
    def counts(self):
        """What is in the table."""
        return [self.it.slots[i].count for i in range(self.it.mask + 1) if self.it.slots[i].count]

    def enter(self, bytes ip):
        return bool(sources_enter(&self.it, self._address(ip)))

    def leave(self, bytes ip):
        sources_leave(&self.it, self._address(ip))

    cdef net_addr *_address(self, bytes ip):
        net_pack(&self.address, <const char *> ip, len(ip), 80, 0)
        return &self.address

    def come_and_go(self, uint32_t first, int rounds):
        """Three of four addresses in turn enter and leave, without the GIL. Returns how often one was turned away."""
        cdef net_addr client[4]
        cdef uint32_t ip
        cdef int i, refused = 0
        for i in range(4):
            ip = first + <uint32_t> i
            net_pack(&client[i], &ip, 4, 80, 0)
        with nogil:
            for i in range(rounds):
                refused += not sources_enter(&self.it, &client[i & 3])
                if i > 2:
                    sources_leave(&self.it, &client[(i - 3) & 3])
            for i in range(rounds - 3, rounds):
                sources_leave(&self.it, &client[i & 3])
        return refused
