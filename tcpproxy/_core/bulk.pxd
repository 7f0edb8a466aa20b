# Scheduling in bulk: a worker that moves bulk yields to local peers, so that each wake-up finds more bytes. The model is in
# docs/core.md, "Scheduling and polling".
from libc.stdint cimport uint64_t
from tcpproxy._core.trial cimport Trial

cdef enum:
    # ns without bytes that end steady bulk. With SCHED_BATCH no wait is longer, so that it is left then. A choice.
    BULK_OVER_NS = 100000000

cdef struct Bulk:
    bint on                 # the last batch that moved bytes was bulk: yield before the wait, and do not busy-poll
    bint steady             # bulk for a while, without interactive traffic: the trial runs
    bint batch_policy       # the thread is in SCHED_BATCH
    bint unavailable        # the switch was refused, or the user has set a policy for this thread
    uint64_t mean           # moving average of the bytes of a batch
    uint64_t moved          # total of bytes up to the last batch that moved any
    uint64_t since_ns       # time of that batch
    uint64_t group_moved    # total of bytes of all workers of the group when the trial's phase began
    Trial trial             # its units are bytes; arm 1 is SCHED_BATCH

cdef void bulk_init(Bulk *bulk) noexcept nogil
# After a batch. `total`: bytes that this worker has moved so far; `bulk_only`: no worker has interactive traffic. True: the
# caller has to call bulk_judge
cdef bint bulk_count(Bulk *bulk, uint64_t total, bint bulk_only, uint64_t now_ns) noexcept nogil
# Chooses the policy. `group_moved`: bytes that all workers of the group have moved so far
cdef void bulk_judge(Bulk *bulk, uint64_t group_moved) noexcept nogil
