# Adaptive busy polling: after a batch a worker may ask the poller again and again without sleeping, when recent gaps say
# that the next event comes soon. A sleep and a wake-up cost more processor time than a short poll, and far more latency.
#
# It must never cost a busy machine: between two polls the processor is offered to whoever wants it (sched_yield), and if
# somebody took it, polling rests, longer each time. An idle worker does not poll at all: a gap beyond the limit is slept.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.poller cimport Poller, Ready

cdef enum:                  # Spin.mode
    SPIN_OFF = 0
    SPIN_AUTO
    SPIN_FIXED              # always up to the limit

cdef struct Spin:
    uint8_t mode
    uint64_t limit_ns
    uint64_t gap_ns[2]      # what to expect after an event of a client, and after one of an upstream
    uint64_t rest_until_ns  # no polling before
    uint32_t contended      # times in a row that somebody wanted the processor
    uint64_t hits           # polls that brought something, for tests and benchmarks
    uint64_t misses

cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil       # < 0: adaptive
# Waits like poller_wait; `after`: 0 or 1, which side the last event was of; `now_ns` is set to the time of return
cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, int after,
                   uint64_t *now_ns) noexcept nogil
