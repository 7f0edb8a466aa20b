# Which of two ways pays, found by trying: the arm that is kept, then a sample at what it costs, then the other arm for a
# little, then a verdict. What a arm costs is the time and the processor time of a unit of work.
from libc.stdint cimport uint8_t, uint64_t

cdef struct Trial:
    uint64_t sample           # units of work that a sample at the kept arm takes
    uint64_t probe         # and one at the other arm, if it agrees with the last verdict
    uint64_t time           # per cent: arm 1 pays if it takes less than so much of the time of arm 0,
    uint64_t cost           # and less than so much of its processor time
    uint64_t busy_batch          # units a batch, from which on arm 1 is not worth trying; 0: always
    uint8_t arm             # now
    uint8_t phase           # PHASE_ of trial.pyx
    uint64_t hold           # units for which the last verdict holds
    uint64_t length         # units of this phase
    uint64_t units          # those so far
    uint64_t batches        # that they came in
    uint64_t took_ns        # for them
    uint64_t began_cpu      # processor time of the thread when the phase began
    uint64_t times[2]       # of a unit, by arm
    uint64_t costs[2]

cdef void trial_init(Trial *trial, uint64_t sample, uint64_t probe, uint64_t time, uint64_t cost,
                     uint64_t busy_batch) noexcept nogil
cdef void trial_count(Trial *trial, uint64_t units, uint64_t took_ns) noexcept nogil       # a batch of work, done
cdef bint trial_due(const Trial *trial) noexcept nogil            # is the phase over?
cdef void trial_restart(Trial *trial) noexcept nogil                # something else came between: a sample begins anew
cdef uint8_t trial_arm(Trial *trial) noexcept nogil               # goes on, if the phase is over, and names the arm
