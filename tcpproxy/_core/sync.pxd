# Atomics for memory that threads share; what is shared is listed in sync.h.
#
# The pattern for a flag on each side: each of two threads changes its own word (sync_swap or sync_add) and then calls
# sync_check on the other's word. At least one of them sees the other's change. An acquire load would not be enough: it may
# be ordered before the store in front of it.
from libc.stdint cimport uint64_t

cdef extern from "sync.h" nogil:
    uint64_t sync_load(const uint64_t *p)                       # acquire
    uint64_t sync_peek(const uint64_t *p)                       # relaxed
    uint64_t sync_check(const uint64_t *p)                      # sequentially consistent
    void sync_store(uint64_t *p, uint64_t v)                    # release
    void sync_set(uint64_t *p, uint64_t v)                      # relaxed
    void sync_bump(uint64_t *p, uint64_t n)                     # adds, relaxed; for a word with a single writer
    uint64_t sync_add(uint64_t *p, uint64_t n)                  # seq. consistent; returns the value before
    uint64_t sync_sub(uint64_t *p, uint64_t n)                  # the same
    uint64_t sync_swap(uint64_t *p, uint64_t v)                 # the same
    int sync_claim(uint64_t *p, uint64_t old, uint64_t v)       # compare and exchange: 1 if it was `old`; acquire, release
    void *sync_swap_pointer(void **p, void *v)                  # seq. consistent; returns the pointer before
    void *sync_load_pointer(void **p)                           # acquire
