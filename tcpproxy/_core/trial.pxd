# An online A/B test between two ways to do the same work, the arms 0 and 1. The model is in docs/core.md, "The trial". A unit
# of work is what the user counts: an event (spin) or a byte (bulk).
from libc.stdint cimport uint8_t, uint64_t

cdef struct Trial:
    uint64_t sample         # units of work in a sample of the current arm
    uint64_t probe          # units of work in a probe of the other arm, if the probe confirms the last verdict
    uint64_t time_percent   # arm 1 pays if a unit takes less than this per cent of arm 0's time,
    uint64_t cost_percent   # and less than this per cent of its processor time
    uint64_t busy_batch     # units per batch from which on arm 1 is not probed; 0: it always is
    uint8_t arm             # the arm to use now
    uint8_t phase           # PHASE_ of trial.pyx
    uint64_t hold           # units for which the last verdict holds
    uint64_t length         # units of this phase
    uint64_t units          # units counted in this phase
    uint64_t batches        # batches counted in this phase
    uint64_t took_ns        # time of these units
    uint64_t began_cpu      # processor time of the thread when the phase began
    uint64_t times[2]       # of a unit, by arm, in 1/1024 ns
    uint64_t costs[2]       # processor time of a unit, by arm

cdef void trial_init(Trial *trial, uint64_t sample, uint64_t probe, uint64_t time_percent, uint64_t cost_percent,
                     uint64_t busy_batch) noexcept nogil
cdef void trial_count(Trial *trial, uint64_t units, uint64_t took_ns) noexcept nogil   # a batch of work is done
cdef bint trial_due(const Trial *trial) noexcept nogil      # is this phase over?
cdef void trial_restart(Trial *trial) noexcept nogil        # other work came between: a sample or probe begins again
cdef uint8_t trial_arm(Trial *trial) noexcept nogil         # begins the next phase if this one is over. Returns the arm to use
