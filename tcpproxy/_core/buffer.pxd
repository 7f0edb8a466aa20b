# Bytes that a half has read and its sink has not taken yet. Header-only: three small functions.
#
# A buffer owns memory only while it holds bytes, and exactly as much as it was filled with. It is filled once and then only
# drained, because a half with unsent bytes does not read.
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef struct Buffer:
    char *memory            # NULL: empty
    uint32_t start, end     # the bytes still to be sent: memory[start:end]


cdef inline int buffer_fill(Buffer *buffer, const char *data, uint32_t size) noexcept nogil:
    """Copies `size` > 0 bytes into an empty buffer. Returns 0, or -1 if there is no memory (nothing was kept)."""
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
    """Removes the first `size` bytes, which were sent."""
    buffer.start += size
    if buffer.start == buffer.end:
        buffer_clear(buffer)
