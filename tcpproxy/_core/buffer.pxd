# Bytes that a half has read and the destination would not take yet. Header-only: three small functions.
#
# A buffer owns memory only while it holds bytes, and exactly as much as it was filled with. It is filled once and
# then only drained: a half with unsent bytes does not read.
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef struct Buffer:
    char *memory            # NULL: empty
    uint32_t start, end     # what is left: memory[start:end]


cdef inline int buffer_fill(Buffer *buffer, const char *data, uint32_t size) noexcept nogil:
    """Keeps a copy of `size` > 0 bytes in an empty buffer: 0, or -1 without memory (and without the bytes)."""
    buffer.memory = <char *> malloc(size)
    if buffer.memory == NULL:
        return -1
    memcpy(buffer.memory, data, size)
    buffer.start = 0
    buffer.end = size
    return 0


cdef inline void buffer_clear(Buffer *buffer) noexcept nogil:
    free(buffer.memory)
    buffer.memory = NULL
    buffer.start = buffer.end = 0


cdef inline void buffer_drop(Buffer *buffer, uint32_t size) noexcept nogil:
    """The first `size` bytes were sent."""
    buffer.start += size
    if buffer.start == buffer.end:
        buffer_clear(buffer)
