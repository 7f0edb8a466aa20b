# Which of two ways pays: the model is in trial.pxd.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.net cimport net_cpu_time

cdef enum:                  # Trial.phase, in turn
    PHASE_KEEP = 0          # what was better
    PHASE_SAME              # goes on with that, and sees what it costs
    PHASE_OTHER             # tries the other way

cdef enum:
    OTHER = 4               # of a look, at the least, before a change of mind
cdef enum:                  # looks for which a verdict holds
    KEEP_LEAST = 4          # after a change of mind, which may be a mistake; twice as many each time there is none
    KEEP_MOST = 256


cdef void trial_init(Trial *trial, uint64_t look, uint64_t glance, uint64_t time, uint64_t cost,
                     uint64_t crowd) noexcept nogil:
    trial.look = look
    trial.glance = glance
    trial.time = time
    trial.cost = cost
    trial.crowd = crowd
    trial.way = 0
    trial.keep = KEEP_LEAST * look // 2
    trial.phase = PHASE_KEEP                    # of no length: the first look begins in the thread that will work


cdef void trial_count(Trial *trial, uint64_t units, uint64_t took_ns) noexcept nogil:
    trial.units += units
    trial.took_ns += took_ns
    trial.batches += 1


cdef bint trial_due(const Trial *trial) noexcept nogil:
    return trial.units >= trial.length


cdef void trial_again(Trial *trial) noexcept nogil:
    if trial.phase != PHASE_KEEP:
        _begin(trial, trial.phase, trial.length)


cdef uint8_t trial_way(Trial *trial) noexcept nogil:
    if trial_due(trial):
        _next_phase(trial)
    return trial.way


cdef void _next_phase(Trial *trial) noexcept nogil:
    cdef uint8_t tried = trial.way, pays
    if trial.phase == PHASE_KEEP:
        _begin(trial, PHASE_SAME, trial.look)
        return
    # In 1/1024 ns: a byte takes less than one.
    trial.times[tried] = (trial.took_ns << 10) // trial.units
    trial.costs[tried] = ((net_cpu_time() - trial.began_cpu) << 10) // trial.units
    if trial.phase == PHASE_SAME:
        if trial.crowd and not tried and trial.units >= trial.crowd * trial.batches:
            _keep(trial, 2 * trial.keep)
            return
        trial.way = not tried
        _begin(trial, PHASE_OTHER, trial.glance)
        return
    # Where the processor time is not known (0), way 1 does not pay.
    pays = trial.times[1] * 100 < trial.times[0] * trial.time and trial.costs[1] * 100 < trial.costs[0] * trial.cost
    if pays == tried and trial.units < trial.look // OTHER:
        trial.length = trial.look // OTHER
        return
    trial.way = pays
    _keep(trial, KEEP_LEAST * trial.look if pays == tried else 2 * trial.keep)


cdef void _keep(Trial *trial, uint64_t length) noexcept nogil:
    trial.keep = length if length < KEEP_MOST * trial.look else KEEP_MOST * trial.look
    _begin(trial, PHASE_KEEP, trial.keep)


cdef void _begin(Trial *trial, uint8_t phase, uint64_t length) noexcept nogil:
    trial.phase = phase
    trial.length = length
    trial.units = trial.batches = trial.took_ns = 0
    trial.began_cpu = net_cpu_time()
