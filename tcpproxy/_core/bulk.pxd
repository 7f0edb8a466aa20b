# How a worker that moves bulk goes back to sleep: so that whoever sends or receives goes first, and the next batch is larger.
#
# It offers the processor (sched_yield), but that reaches only threads of its own scheduling group, and every session and service
# has its own. So in steady bulk it asks the kernel not to interrupt anybody when it wakes this thread (SCHED_BATCH). On a
# processor that somebody else keeps busy it would wait for that one too, so it is tried (see trial.pxd), and a
# conversation, of any worker, ends it at once.
from libc.stdint cimport uint64_t
from tcpproxy._core.trial cimport Trial

cdef enum:
    OVER_NS = 100000000     # without bytes: over. Who wakes last sleeps no longer at a time, so as to be woken as usual then

cdef struct Bulk:
    bint on                 # bytes come many at a time
    bint steady             # have done so for a while, without a conversation
    bint batch_policy             # the kernel wakes this thread last
    bint unavailable             # it would not, or somebody has chosen a policy for this thread
    uint64_t mean           # bytes of a batch, lately
    uint64_t moved          # bytes, up to the last batch that moved any
    uint64_t since_ns       # when that was
    uint64_t group_moved      # bytes that all workers of the group had moved when the trial's phase began
    Trial trial             # of bytes: way 1 is to wake last

cdef void bulk_init(Bulk *bulk) noexcept nogil
# After a batch. `total`: what this worker has moved; `bulk_only`: nobody has a conversation. True: bulk_judge, please
cdef bint bulk_count(Bulk *bulk, uint64_t total, bint bulk_only, uint64_t now_ns) noexcept nogil
cdef void bulk_judge(Bulk *bulk, uint64_t group_moved) noexcept nogil        # what all workers of the group have moved
