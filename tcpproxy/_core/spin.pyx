# Adaptive busy polling: the model is in spin.pxd.
from libc.stdint cimport int64_t, uint64_t
from tcpproxy._core.net cimport net_cpu_time, net_now_ns, net_yield
from tcpproxy._core.poller cimport poller_wait
from tcpproxy._core.sync cimport sync_bump

cdef enum:
    LIMIT_NS = 100000       # the longest poll
    WORTH_NS = 80000        # an expected gap that is longer is slept through
    SLACK_NS = 15000        # polled beyond twice the expected gap
    REST_NS = 1000000       # after a yield longer than the limit; doubled each time in a row, up to REST_DOUBLINGS times
    REST_DOUBLINGS = 6

cdef enum:                  # Spin.phase, in turn
    PHASE_SLEEP = 0         # TRIAL events without polling
    PHASE_POLL              # as many with it
    PHASE_KEEP              # what was better

cdef enum:
    TRIAL = 256             # events: some milliseconds, so that one interruption decides nothing
    KEEP_POLLING = 65536    # between two trials; the trial without polling must not show among the slowest 1 %
    KEEP_SLEEPING = 16384


cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil:
    spin.mode = SPIN_AUTO if limit_ns < 0 else SPIN_FIXED if limit_ns > 0 else SPIN_OFF
    spin.limit_ns = LIMIT_NS if limit_ns < 0 else <uint64_t> limit_ns
    spin.gap_ns[0] = spin.gap_ns[1] = 2 * spin.limit_ns
    spin.phase = PHASE_KEEP


cdef bint _worth(Spin *spin, int after, uint64_t now_ns) noexcept nogil:
    return spin.mode == SPIN_AUTO and spin.gap_ns[after] <= WORTH_NS and now_ns >= spin.rest_until_ns


cdef uint64_t _budget(Spin *spin, int after) noexcept nogil:
    cdef uint64_t enough = 2 * spin.gap_ns[after] + SLACK_NS
    if spin.left <= 0:
        _next_phase(spin)
    if spin.phase == PHASE_SLEEP or (spin.phase == PHASE_KEEP and not spin.pays):
        return 0
    return enough if enough < spin.limit_ns else spin.limit_ns


cdef void _next_phase(Spin *spin) noexcept nogil:
    """The verdict is about the wait for each event, not for each batch: polling makes more batches of the same events."""
    cdef uint64_t cpu_time = net_cpu_time()
    cdef uint64_t events = TRIAL - spin.left
    cdef uint64_t waited_ns = spin.waited_ns // events, used = (cpu_time - spin.began_cpu) // events
    spin.left = TRIAL
    if spin.phase == PHASE_KEEP:
        spin.phase = PHASE_SLEEP
    elif spin.phase == PHASE_SLEEP:
        spin.phase = PHASE_POLL
        spin.slept_ns = waited_ns
        spin.slept_cpu = used
    else:
        spin.phase = PHASE_KEEP
        # Where the processor time is not known (0), it does not pay.
        spin.pays = waited_ns * 5 < spin.slept_ns * 4 and used * 2 < spin.slept_cpu * 3
        spin.left = KEEP_POLLING if spin.pays else KEEP_SLEEPING
    spin.waited_ns = 0
    spin.began_cpu = cpu_time


cdef void _learn(Spin *spin, int after, uint64_t gap, bint worth, int count) noexcept nogil:
    """A moving average. Capped, so that after one long pause a few short gaps are enough to poll again."""
    if gap > 2 * spin.limit_ns:
        gap = 2 * spin.limit_ns
    spin.gap_ns[after] = (spin.gap_ns[after] * 7 + gap) // 8
    if worth:
        spin.waited_ns += gap
        spin.left -= count


cdef int _poll(Spin *spin, Poller *poller, Ready *events, int room, uint64_t budget, uint64_t *now_ns) noexcept nogil:
    """Events that came within the budget, or 0."""
    cdef uint64_t begin = now_ns[0], before, doublings
    cdef int count
    while True:
        count = poller_wait(poller, events, room, 0)
        if count != 0:
            spin.contended = 0
            return count
        before = now_ns[0]
        if before - begin >= budget:
            return 0
        # Alone it takes 0.5 us. Whoever runs now may be a peer, at work on our next event: the cheapest wake-up there is.
        net_yield()
        now_ns[0] = net_now_ns()
        if now_ns[0] - before > spin.limit_ns and spin.mode == SPIN_AUTO:
            doublings = spin.contended if spin.contended < REST_DOUBLINGS else REST_DOUBLINGS
            spin.rest_until_ns = now_ns[0] + (<uint64_t> REST_NS << doublings)
            spin.contended += 1
            return poller_wait(poller, events, room, 0)


cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, int after,
                   uint64_t *now_ns) noexcept nogil:
    cdef int count = 0
    cdef uint64_t begin = net_now_ns()
    cdef bint worth = _worth(spin, after, begin)
    cdef uint64_t budget = _budget(spin, after) if worth else spin.limit_ns if spin.mode == SPIN_FIXED else 0
    now_ns[0] = begin
    if timeout_ns >= 0 and <uint64_t> timeout_ns < budget:
        budget = timeout_ns
    if budget:
        count = _poll(spin, poller, events, room, budget, now_ns)
        sync_bump(&spin.hits if count else &spin.misses, 1)
    if count == 0:
        count = poller_wait(poller, events, room, timeout_ns)
    now_ns[0] = net_now_ns()
    _learn(spin, after, now_ns[0] - begin, worth, count)
    return count
