# Adaptive busy polling: after a batch a worker may ask the poller again and again without sleeping, when recent gaps say
# that the next event comes soon. A sleep and a wake-up cost latency, and processor time of their own.
#
# It must never cost a busy machine, so it is tried: some batches without it, some with it, and it stays only if batches
# came clearly faster, for not much more processor time. Between two polls the processor is offered to whoever wants it
# (sched_yield); if that takes long, others are hungry, and polling rests, longer each time. An idle worker never polls.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.poller cimport Poller, Ready
from tcpproxy._core.trial cimport Trial

cdef enum:                  # Spin.mode
    SPIN_OFF = 0
    SPIN_AUTO
    SPIN_FIXED              # always up to the limit

cdef struct Spin:
    uint8_t mode
    uint64_t limit_ns
    uint64_t gap_ns[2]      # what to expect after an event of a client, and after one of an upstream
    uint64_t backoff_until_ns  # no polling before
    uint32_t slow_yields      # times in a row that others kept the processor long
    uint64_t last_ns        # when the last event came
    Trial trial             # of events: way 1 is polling
    uint64_t hits           # polls that brought something, for tests and benchmarks
    uint64_t misses

cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil       # < 0: adaptive
# Waits like poller_wait; `last_side`: 0 or 1, which side the last event was of; `now_ns` is set to the time of return
cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, int last_side,
                   uint64_t *now_ns) noexcept nogil
