# Which of two ways pays, found by trying: the way that is kept, then a look at what it costs, then the other way for a
# little, then a verdict. What a way costs is the time and the processor time of a unit of work.
from libc.stdint cimport uint8_t, uint64_t

cdef struct Trial:
    uint64_t look           # units of work that a look at the kept way takes
    uint64_t glance         # and one at the other way, if it agrees with the last verdict
    uint64_t time           # per cent: way 1 pays if it takes less than so much of the time of way 0,
    uint64_t cost           # and less than so much of its processor time
    uint64_t crowd          # units a batch, from which on way 1 is not worth trying; 0: always
    uint8_t way             # now
    uint8_t phase           # PHASE_ of trial.pyx
    uint64_t keep           # units for which the last verdict holds
    uint64_t length         # units of this phase
    uint64_t units          # those so far
    uint64_t batches        # that they came in
    uint64_t took_ns        # for them
    uint64_t began_cpu      # processor time of the thread when the phase began
    uint64_t times[2]       # of a unit, by way
    uint64_t costs[2]

cdef void trial_init(Trial *trial, uint64_t look, uint64_t glance, uint64_t time, uint64_t cost,
                     uint64_t crowd) noexcept nogil
cdef void trial_count(Trial *trial, uint64_t units, uint64_t took_ns) noexcept nogil       # a batch of work, done
cdef bint trial_due(const Trial *trial) noexcept nogil            # is the phase over?
cdef void trial_again(Trial *trial) noexcept nogil                # something else came between: a look begins anew
cdef uint8_t trial_way(Trial *trial) noexcept nogil               # goes on, if the phase is over, and names the way
