# Which of two ways pays: the model is in trial.pxd.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.thread cimport thread_cpu_time

cdef enum:                  # Trial.phase, in turn
    PHASE_HOLD = 0          # what was better
    PHASE_SAMPLE              # goes on with that, and sees what it costs
    PHASE_PROBE             # tries the other arm

cdef enum:
    OTHER = 4               # of a sample, at the least, before a change of mind
cdef enum:                  # looks for which a verdict holds
    HOLD_LEAST = 4          # after a change of mind, which may be a mistake; twice as many each time there is none
    HOLD_MOST = 256


cdef void trial_init(Trial *trial, uint64_t sample, uint64_t probe, uint64_t time, uint64_t cost,
                     uint64_t busy_batch) noexcept nogil:
    trial.sample = sample
    trial.probe = probe
    trial.time = time
    trial.cost = cost
    trial.busy_batch = busy_batch
    trial.arm = 0
    trial.hold = HOLD_LEAST * sample // 2
    trial.phase = PHASE_HOLD                    # of no length: the first sample begins in the thread that will work


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
    # In 1/1024 ns: a byte takes less than one.
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
    pays = trial.times[1] * 100 < trial.times[0] * trial.time and trial.costs[1] * 100 < trial.costs[0] * trial.cost
    if pays == tried and trial.units < trial.sample // OTHER:
        trial.length = trial.sample // OTHER
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
