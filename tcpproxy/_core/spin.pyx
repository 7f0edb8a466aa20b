# Adaptive busy polling: the model is in spin.pxd.
from libc.stdint cimport int64_t, uint64_t
from tcpproxy._core.net cimport net_now_ns, net_yield
from tcpproxy._core.poller cimport poller_wait
from tcpproxy._core.sync cimport sync_bump

cdef enum:
    LIMIT_NS = 100000       # a longer gap is slept through
    SLACK_NS = 15000        # polled beyond twice the expected gap
    TAKEN_NS = 8000         # a yield that takes longer has let somebody else run (alone it takes 0.5 us)
    REST_NS = 1000000       # after that; doubled each time in a row, up to REST_NS << REST_DOUBLINGS
    REST_DOUBLINGS = 6


cdef void spin_init(Spin *spin, int64_t limit_ns) noexcept nogil:
    spin.mode = SPIN_AUTO if limit_ns < 0 else SPIN_FIXED if limit_ns > 0 else SPIN_OFF
    spin.limit_ns = LIMIT_NS if limit_ns < 0 else <uint64_t> limit_ns
    spin.gap_ns[0] = spin.gap_ns[1] = 2 * spin.limit_ns


cdef uint64_t _budget(Spin *spin, int after, uint64_t now_ns) noexcept nogil:
    cdef uint64_t gap = spin.gap_ns[after]
    if spin.mode == SPIN_FIXED:
        return spin.limit_ns
    if gap > spin.limit_ns or now_ns < spin.rest_until_ns:
        return 0
    return gap * 2 + SLACK_NS if gap * 2 + SLACK_NS < spin.limit_ns else spin.limit_ns


cdef void _learn(Spin *spin, int after, uint64_t gap) noexcept nogil:
    """A moving average. Capped, so that after one long pause a few short gaps are enough to poll again."""
    if gap > 2 * spin.limit_ns:
        gap = 2 * spin.limit_ns
    spin.gap_ns[after] = (spin.gap_ns[after] * 7 + gap) // 8


cdef bint _yield(Spin *spin, uint64_t *now_ns) noexcept nogil:
    """Offers the processor. False: somebody took it, so polling has to rest."""
    cdef uint64_t before = now_ns[0]
    cdef uint64_t doublings = spin.contended if spin.contended < REST_DOUBLINGS else REST_DOUBLINGS
    net_yield()
    now_ns[0] = net_now_ns()
    if now_ns[0] - before < TAKEN_NS or spin.mode == SPIN_FIXED:
        return True
    spin.rest_until_ns = now_ns[0] + (<uint64_t> REST_NS << doublings)
    spin.contended += 1
    return False


cdef int spin_wait(Spin *spin, Poller *poller, Ready *events, int room, int64_t timeout_ns, int after,
                   uint64_t *now_ns) noexcept nogil:
    cdef int count
    cdef uint64_t begin = net_now_ns()
    cdef uint64_t budget = _budget(spin, after, begin)
    now_ns[0] = begin
    if timeout_ns >= 0 and <uint64_t> timeout_ns < budget:
        budget = timeout_ns
    while now_ns[0] - begin < budget:
        count = poller_wait(poller, events, room, 0)
        if count != 0:
            now_ns[0] = net_now_ns()
            _learn(spin, after, now_ns[0] - begin)
            spin.contended = 0
            sync_bump(&spin.hits, 1)
            return count
        if not _yield(spin, now_ns):
            break
    if budget:
        sync_bump(&spin.misses, 1)
    count = poller_wait(poller, events, room, timeout_ns)
    now_ns[0] = net_now_ns()
    _learn(spin, after, now_ns[0] - begin)
    return count
