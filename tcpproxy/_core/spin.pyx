# Adaptive busy polling: the model is in docs/core.md, "Scheduling and polling".
from libc.stdint cimport int64_t, uint64_t
from tcpproxy._core.poller cimport poller_wait
from tcpproxy._core.sync cimport sync_bump
from tcpproxy._core.thread cimport clock_ns, thread_yield
from tcpproxy._core.trial cimport trial_arm, trial_count, trial_init

cdef enum:                  # the measurements are in docs/decisions.md
    # ns: the longest poll, and the length from which on a yield is slow. With 8 us for the latter most backoffs were caused by
    # the peer, at work on the next event.
    LONGEST_POLL_NS = 100000
    LONGEST_GAP_NS = 80000      # ns: the worker sleeps if it expects a longer gap
    GAPS = 4                    # a poll lasts this many expected gaps. With 2 one poll in 500 ended too early
    SLACK_NS = 15000            # ns: and this much longer
    BACKOFF_NS = 1000000        # ns without polling after a slow yield; doubled at each further one,
    BACKOFF_DOUBLINGS = 6       # this many times at most: to 64 ms

cdef enum:                  # of the trial
    SAMPLE_EVENTS = 256
    PROBE_EVENTS = 16       # probing the slower arm is the cost of a trial: 64 events showed in p99
    TIME_PERCENT = 80       # polling pays if it takes less than this per cent of the time from event to event,
    COST_PERCENT = 150      # and less than this per cent of the processor time
    BUSY_EVENTS = 3         # events per wake-up from which on no probe is made: one wake-up serves several already


cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil:
    spin.mode = SPIN_AUTO if limit_ns < 0 else SPIN_FIXED if limit_ns > 0 else SPIN_OFF
    spin.limit_ns = LONGEST_POLL_NS if limit_ns < 0 else <uint64_t> limit_ns
    spin.gap_ns[0] = spin.gap_ns[1] = 2 * spin.limit_ns
    trial_init(&spin.trial, SAMPLE_EVENTS, PROBE_EVENTS, TIME_PERCENT, COST_PERCENT, BUSY_EVENTS)


cdef bint _worth(Spin *spin, int last_side, uint64_t now_ns) noexcept nogil:
    return spin.mode == SPIN_AUTO and spin.gap_ns[last_side] <= LONGEST_GAP_NS and now_ns >= spin.backoff_until_ns


cdef uint64_t _longest_ns(Spin *spin, int last_side) noexcept nogil:
    cdef uint64_t enough = GAPS * spin.gap_ns[last_side] + SLACK_NS
    if not trial_arm(&spin.trial):
        return 0
    return enough if enough < spin.limit_ns else spin.limit_ns


cdef void _learn(Spin *spin, int last_side, uint64_t begin_ns, uint64_t now_ns, bint worth, int count) noexcept nogil:
    """Updates the moving average of gaps. Each gap is capped, so that a few short ones after a long pause allow polling again."""
    cdef uint64_t most = 2 * spin.limit_ns, gap = min(now_ns - begin_ns, most), took = min(now_ns - spin.last_ns, most)
    spin.gap_ns[last_side] = (spin.gap_ns[last_side] * 7 + gap) // 8
    spin.last_ns = now_ns
    if worth:
        # Events, not batches, and the time from events to events, not the wait alone: docs/core.md says why.
        trial_count(&spin.trial, count, took)


cdef int _poll(Spin *spin, Poller *poller, Ready *events, int room, uint64_t longest_ns, uint64_t *now_ns) noexcept nogil:
    """Polls for `longest_ns`. Returns the number of events, or 0."""
    cdef uint64_t begin = now_ns[0], before, doublings
    cdef int count
    while True:
        count = poller_wait(poller, events, room, 0, False)
        if count != 0:
            spin.slow_yields = 0
            return count
        before = now_ns[0]
        if before - begin >= longest_ns:
            return 0
        # Takes 0.5 us if no other thread wants the processor. The thread that runs now may be a peer, at work on our next
        # event: no wake-up is cheaper.
        thread_yield()
        now_ns[0] = clock_ns()
        if now_ns[0] - before > spin.limit_ns and spin.mode == SPIN_AUTO:
            doublings = spin.slow_yields if spin.slow_yields < BACKOFF_DOUBLINGS else BACKOFF_DOUBLINGS
            spin.backoff_until_ns = now_ns[0] + (<uint64_t> BACKOFF_NS << doublings)
            spin.slow_yields += 1
            return poller_wait(poller, events, room, 0, False)


cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, bint exact,
                   int last_side, uint64_t *now_ns) noexcept nogil:
    cdef int count = 0
    cdef uint64_t begin = clock_ns()
    cdef bint worth = _worth(spin, last_side, begin)
    cdef uint64_t longest_ns = _longest_ns(spin, last_side) if worth else spin.limit_ns if spin.mode == SPIN_FIXED else 0
    now_ns[0] = begin
    if timeout_ns >= 0 and <uint64_t> timeout_ns < longest_ns:
        longest_ns = timeout_ns
    if longest_ns:
        count = _poll(spin, poller, events, room, longest_ns, now_ns)
        sync_bump(&spin.hits if count else &spin.misses, 1)
    if count == 0:
        count = poller_wait(poller, events, room, timeout_ns, exact)
    now_ns[0] = clock_ns()
    _learn(spin, last_side, begin, now_ns[0], worth, count)
    return count
