# Atomics for what threads share; the model is in sync.h.
from libc.stdint cimport uint64_t

cdef extern from "sync.h" nogil:
    uint64_t sync_load(const uint64_t *p)               # acquire
    uint64_t sync_peek(const uint64_t *p)               # relaxed
    uint64_t sync_check(const uint64_t *p)              # sequentially consistent
    void sync_store(uint64_t *p, uint64_t v)            # release
    void sync_set(uint64_t *p, uint64_t v)              # relaxed
    void sync_bump(uint64_t *p, uint64_t n)             # add, single writer
    uint64_t sync_add(uint64_t *p, uint64_t n)          # add, many writers: sequentially consistent; the value before
    uint64_t sync_sub(uint64_t *p, uint64_t n)
    uint64_t sync_swap(uint64_t *p, uint64_t v)         # sequentially consistent; the value before
    int sync_claim(uint64_t *p, uint64_t old, uint64_t v)
    void *sync_swap_pointer(void **p, void *v)
    void *sync_load_pointer(void **p)
