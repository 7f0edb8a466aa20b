# What a worker asks of its thread, and the clock; thread.h says the rest.
from libc.stdint cimport uint64_t

cdef extern from "thread.h" nogil:
    void thread_yield()
    bint thread_batch_policy(bint on)
    void thread_nap_us(long us)
    void thread_block_sigpipe()
    uint64_t clock_ns()
    uint64_t thread_cpu_time()
