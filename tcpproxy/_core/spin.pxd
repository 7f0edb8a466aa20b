# Adaptive busy polling: after a batch a worker may poll without sleeping, if recent gaps between events say that the next
# event will come soon. The model is in docs/core.md, "Scheduling and polling".
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.poller cimport Poller, Ready
from tcpproxy._core.trial cimport Trial

cdef enum:                      # Spin.mode
    SPIN_OFF = 0
    SPIN_AUTO                   # if it pays
    SPIN_FIXED                  # always, for limit_ns

cdef struct Spin:
    uint8_t mode
    uint64_t limit_ns           # the longest poll
    uint64_t gap_ns[2]          # expected gap after an event of a client, and after one of an upstream
    uint64_t backoff_until_ns   # no polling before this time
    uint32_t slow_yields        # slow yields since the last poll that found an event
    uint64_t last_ns            # time of the last events
    Trial trial                 # its units are events; arm 1 is polling
    uint64_t hits               # polls that found events
    uint64_t misses             # polls that found none

cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil       # 0: off; < 0: adaptive
# Waits like poller_wait. `last_side`: the side of the last event, CLIENT or UPSTREAM; `now_ns` is set to the time of return
cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, bint exact,
                   int last_side, uint64_t *now_ns) noexcept nogil
