# Adaptive busy polling: the model is in spin.pxd.
from libc.stdint cimport int64_t, uint64_t
from tcpproxy._core.poller cimport poller_wait
from tcpproxy._core.sync cimport sync_bump
from tcpproxy._core.thread cimport clock_ns, thread_yield
from tcpproxy._core.trial cimport trial_arm, trial_count, trial_init

cdef enum:
    LIMIT_NS = 100000       # the longest poll
    WORTH_NS = 80000        # an expected gap that is longer is slept through
    SLACK_NS = 15000        # polled beyond four times the expected gap; beyond twice, one poll in 500 ended too early
    REST_NS = 1000000       # last_side a yield longer than the limit; doubled each time in a row, up to REST_DOUBLINGS times
    REST_DOUBLINGS = 6

cdef enum:
    SAMPLE = 256              # events
    PROBE = 16             # those of the other way are the dear ones, and 64 showed among the slowest 1 %
    TIME = 80               # per cent
    COST = 150
    BUSY_BATCH = 3               # events a wake-up, from which on there is no need to try: it is already shared


cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil:
    spin.mode = SPIN_AUTO if limit_ns < 0 else SPIN_FIXED if limit_ns > 0 else SPIN_OFF
    spin.limit_ns = LIMIT_NS if limit_ns < 0 else <uint64_t> limit_ns
    spin.gap_ns[0] = spin.gap_ns[1] = 2 * spin.limit_ns
    trial_init(&spin.trial, SAMPLE, PROBE, TIME, COST, BUSY_BATCH)


cdef bint _worth(Spin *spin, int last_side, uint64_t now_ns) noexcept nogil:
    return spin.mode == SPIN_AUTO and spin.gap_ns[last_side] <= WORTH_NS and now_ns >= spin.backoff_until_ns


cdef uint64_t _budget(Spin *spin, int last_side) noexcept nogil:
    cdef uint64_t enough = 4 * spin.gap_ns[last_side] + SLACK_NS
    if not trial_arm(&spin.trial):
        return 0
    return enough if enough < spin.limit_ns else spin.limit_ns


cdef void _learn(Spin *spin, int last_side, uint64_t begin_ns, uint64_t now_ns, bint worth, int count) noexcept nogil:
    """A moving average of gaps. Capped, so that last_side one long pause a few short ones are enough to poll again."""
    cdef uint64_t most = 2 * spin.limit_ns, gap = min(now_ns - begin_ns, most), turn = min(now_ns - spin.last_ns, most)
    spin.gap_ns[last_side] = (spin.gap_ns[last_side] * 7 + gap) // 8
    spin.last_ns = now_ns
    if worth:
        # Events, not batches: polling makes more batches of the same events. And with our own work, not the wait alone:
        # where everybody is busy, what is gained in one is lost in the other (eight clients that connected and went).
        trial_count(&spin.trial, count, turn)


cdef int _poll(Spin *spin, Poller *poller, Ready *events, int room, uint64_t budget, uint64_t *now_ns) noexcept nogil:
    """Events that came within the budget, or 0."""
    cdef uint64_t begin = now_ns[0], before, doublings
    cdef int count
    while True:
        count = poller_wait(poller, events, room, 0)
        if count != 0:
            spin.slow_yields = 0
            return count
        before = now_ns[0]
        if before - begin >= budget:
            return 0
        # Alone it takes 0.5 us. Whoever runs now may be a peer, at work on our next event: the cheapest wake-up there is.
        thread_yield()
        now_ns[0] = clock_ns()
        if now_ns[0] - before > spin.limit_ns and spin.mode == SPIN_AUTO:
            doublings = spin.slow_yields if spin.slow_yields < REST_DOUBLINGS else REST_DOUBLINGS
            spin.backoff_until_ns = now_ns[0] + (<uint64_t> REST_NS << doublings)
            spin.slow_yields += 1
            return poller_wait(poller, events, room, 0)


cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, int last_side,
                   uint64_t *now_ns) noexcept nogil:
    cdef int count = 0
    cdef uint64_t begin = clock_ns()
    cdef bint worth = _worth(spin, last_side, begin)
    cdef uint64_t budget = _budget(spin, last_side) if worth else spin.limit_ns if spin.mode == SPIN_FIXED else 0
    now_ns[0] = begin
    if timeout_ns >= 0 and <uint64_t> timeout_ns < budget:
        budget = timeout_ns
    if budget:
        count = _poll(spin, poller, events, room, budget, now_ns)
        sync_bump(&spin.hits if count else &spin.misses, 1)
    if count == 0:
        count = poller_wait(poller, events, room, timeout_ns)
    now_ns[0] = clock_ns()
    _learn(spin, last_side, begin, now_ns[0], worth, count)
    return count
