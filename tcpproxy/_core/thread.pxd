# The calling thread, and the clock; thread.h has the details.
from libc.stdint cimport uint64_t

cdef extern from "thread.h" nogil:
    void thread_yield()
    bint thread_batch_policy(bint on)       # SCHED_BATCH on or off. False: refused
    void thread_nap_us(long us)             # sleeps at least that long
    void thread_block_sigpipe()
    uint64_t clock_ns()                     # monotonic
    uint64_t wall_ns()                      # since 1970, UTC
    uint64_t thread_cpu_time()              # in a unit of the platform, for comparisons; always 0: not known
