# An online A/B test: the model is in docs/core.md, "The trial".
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.thread cimport thread_cpu_time

cdef enum:                  # Trial.phase, in this order
    PHASE_HOLD = 0          # use the better arm, without measuring
    PHASE_SAMPLE            # go on with it, and measure it
    PHASE_PROBE             # use the other arm, and measure it

cdef enum:
    REVERSAL_PART = 4       # a verdict is reversed only by a probe of at least 1/4 sample: shorter ones are noisy

cdef enum:                  # samples for which a verdict holds: doubled at each confirmation, from the least to the most
    HOLD_LEAST = 4          # after a reversal, which may be a mistake
    HOLD_MOST = 256


cdef void trial_init(Trial *trial, uint64_t sample, uint64_t probe, uint64_t time_percent, uint64_t cost_percent,
                     uint64_t busy_batch) noexcept nogil:
    trial.sample = sample
    trial.probe = probe
    trial.time_percent = time_percent
    trial.cost_percent = cost_percent
    trial.busy_batch = busy_batch
    trial.arm = 0
    trial.hold = HOLD_LEAST * sample // 2
    trial.phase = PHASE_HOLD        # its length is 0: the first sample begins later, in the worker's thread, which is measured


cdef void trial_count(Trial *trial, uint64_t units, uint64_t took_ns) noexcept nogil:
    trial.units += units
    trial.took_ns += took_ns
    trial.batches += 1


cdef bint trial_due(const Trial *trial) noexcept nogil:
    return trial.units >= trial.length


cdef void trial_restart(Trial *trial) noexcept nogil:
    if trial.phase != PHASE_HOLD:
        _begin(trial, trial.phase, trial.length)


cdef uint8_t trial_arm(Trial *trial) noexcept nogil:
    if trial_due(trial):
        _next_phase(trial)
    return trial.arm


cdef void _next_phase(Trial *trial) noexcept nogil:
    cdef uint8_t tried = trial.arm, pays
    if trial.phase == PHASE_HOLD:
        _begin(trial, PHASE_SAMPLE, trial.sample)
        return
    # In 1/1024 ns, because a byte takes less than 1 ns.
    trial.times[tried] = (trial.took_ns << 10) // trial.units
    trial.costs[tried] = ((thread_cpu_time() - trial.began_cpu) << 10) // trial.units
    if trial.phase == PHASE_SAMPLE:
        if trial.busy_batch and not tried and trial.units >= trial.busy_batch * trial.batches:
            _hold(trial, 2 * trial.hold)
            return
        trial.arm = not tried
        _begin(trial, PHASE_PROBE, trial.probe)
        return
    # Where the processor time is not known (0), arm 1 does not pay.
    pays = trial.times[1] * 100 < trial.times[0] * trial.time_percent \
        and trial.costs[1] * 100 < trial.costs[0] * trial.cost_percent
    if pays == tried and trial.units < trial.sample // REVERSAL_PART:
        trial.length = trial.sample // REVERSAL_PART
        return
    trial.arm = pays
    _hold(trial, HOLD_LEAST * trial.sample if pays == tried else 2 * trial.hold)


cdef void _hold(Trial *trial, uint64_t length) noexcept nogil:
    trial.hold = length if length < HOLD_MOST * trial.sample else HOLD_MOST * trial.sample
    _begin(trial, PHASE_HOLD, trial.hold)


cdef void _begin(Trial *trial, uint8_t phase, uint64_t length) noexcept nogil:
    trial.phase = phase
    trial.length = length
    trial.units = trial.batches = trial.took_ns = 0
    trial.began_cpu = thread_cpu_time()
