# For a call without memory. The caller has limited the address space.
from libc.stdlib cimport free, malloc


# Allocates all memory that is left, in blocks down to 1 KiB. Returns their chain.
cdef inline void *memory_take_all() noexcept nogil:
    cdef size_t size = 1 << 26
    cdef void **block
    cdef void **chain = NULL
    while size >= 1024:
        block = <void **> malloc(size)
        if block == NULL:
            size //= 2
            continue
        block[0] = chain
        chain = block
    return chain


cdef inline void memory_give_back(void *chain) noexcept nogil:
    cdef void *next
    while chain != NULL:
        next = (<void **> chain)[0]
        free(chain)
        chain = next
