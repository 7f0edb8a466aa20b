from libc.stdint cimport uint32_t
from tcpproxy._core.buffer cimport Buffer, buffer_clear, buffer_drop, buffer_fill

from memory cimport memory_give_back, memory_take_all


cdef class BufferDoor:
    cdef Buffer it

    def __dealloc__(self):
        buffer_clear(&self.it)

    def fill(self, bytes data, *, bint without_memory=False):
        cdef const char *start = data
        cdef uint32_t size = len(data)
        cdef int rc
        with nogil:
            chain = memory_take_all() if without_memory else NULL
            rc = buffer_fill(&self.it, start, size)
            memory_give_back(chain)
        return rc

    def drop(self, uint32_t size):
        buffer_drop(&self.it, size)

    def clear(self):
        buffer_clear(&self.it)

    @property
    def content(self):
        """None: it owns no memory."""
        return None if self.it.memory == NULL else self.it.memory[self.it.start:self.it.end]

    @property
    def bounds(self):
        return self.it.start, self.it.end
