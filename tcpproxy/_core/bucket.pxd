# A limit of a rate, as a token bucket (GCRA). Header-only.
#
# A bucket is one word: the time until which the rate is used up. Sending n bytes moves it on by the time that they take at the
# rate. A time in the past is credit, of at most `burst_ns`; one in the future is debt. So there is no tick and nothing to refill.
# Workers share a rate through the word alone: bucket_charge is a compare-and-swap. If two charge at once, they leave a debt,
# and the next sender waits until it is over.
#
# bucket_due_ns tells a sender when it may send, and bucket_room how much; bucket_charge charges the bytes that it sends. The
# sender waits until it may send all its bytes, or half of the burst if that is less: single bytes would cost a wake-up each, and
# a wake-up that is late by less than half of the burst loses no throughput.
#
# Senders that share a rate reserve their next bytes with bucket_reserve, which returns the time for them. So they take turns, and
# none is woken in vain.
from libc.stdint cimport uint64_t
from tcpproxy._core.sync cimport sync_claim, sync_load

cdef struct Limit:
    uint64_t rate           # bytes per second, 1 to 10^12
    uint64_t burst_ns       # the most credit, as time at the rate

cdef enum:
    BUCKET_BURST_NS = 10000000      # the default burst


cdef inline void limit_set(Limit *limit, uint64_t rate, uint64_t burst) noexcept nogil:
    """`burst`: bytes, up to 10^9; 0: the default. A burst is two bytes at least."""
    limit.rate = rate
    limit.burst_ns = BUCKET_BURST_NS
    if burst or BUCKET_BURST_NS * rate < 2 * <uint64_t> 1000000000:
        limit.burst_ns = ((burst if burst > 2 else 2) * <uint64_t> 1000000000 + rate - 1) // rate


cdef inline uint64_t bucket_takes_ns(const Limit *limit, uint64_t size) noexcept nogil:
    """How long `size` bytes take, rounded up, so that the rate is never exceeded. `size` < 2^34."""
    return (size * <uint64_t> 1000000000 + limit.rate - 1) // limit.rate


cdef inline uint64_t _bucket_from(uint64_t used_up_ns, const Limit *limit, uint64_t now_ns) noexcept nogil:
    """The time until which the rate is used up, moved forward if its credit would be more than a burst."""
    cdef uint64_t least = now_ns - limit.burst_ns if now_ns > limit.burst_ns else 0
    return used_up_ns if used_up_ns > least else least


cdef inline uint64_t bucket_due_ns(const uint64_t *bucket, const Limit *limit, uint64_t held, uint64_t now_ns) noexcept nogil:
    """When the next bytes may be sent, if `held` > 0 bytes wait."""
    cdef uint64_t least = limit.burst_ns * limit.rate // <uint64_t> 2000000000
    return _bucket_from(sync_load(bucket), limit, now_ns) + bucket_takes_ns(limit, held if held < least else least)


cdef inline uint64_t bucket_room(const uint64_t *bucket, const Limit *limit, uint64_t now_ns) noexcept nogil:
    """How many bytes may be sent now."""
    cdef uint64_t start = _bucket_from(sync_load(bucket), limit, now_ns)
    return (now_ns - start) * limit.rate // <uint64_t> 1000000000 if start < now_ns else 0


cdef inline uint64_t bucket_reserve(uint64_t *bucket, const Limit *limit, uint64_t size, uint64_t now_ns) noexcept nogil:
    """Charges `size` < 2^34 bytes. Returns when they may be sent, which is after all earlier charges."""
    cdef uint64_t old, start
    while True:
        old = sync_load(bucket)
        start = _bucket_from(old, limit, now_ns)
        if sync_claim(bucket, old, start + bucket_takes_ns(limit, size)):
            return start


cdef inline void bucket_give_back(uint64_t *bucket, const Limit *limit, uint64_t size) noexcept nogil:
    """Takes back a charge of `size` bytes, which are not sent."""
    cdef uint64_t back_ns = bucket_takes_ns(limit, size), old = sync_load(bucket)
    while old > back_ns and not sync_claim(bucket, old, old - back_ns):
        old = sync_load(bucket)


cdef inline void bucket_charge(uint64_t *bucket, const Limit *limit, uint64_t size, uint64_t now_ns) noexcept nogil:
    """Charges `size` bytes, which are sent now."""
    bucket_reserve(bucket, limit, size, now_ns)
