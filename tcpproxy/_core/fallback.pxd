# Forwards with several targets: which target a connection tries, and what is remembered of each target.
#
# The targets are tried in order. Each has an equal share of the time that is left until TIMER_CONNECT; the last one has all of
# it. The next target is tried if a name does not resolve or no attempt succeeds. It is not tried if this process or machine lacks
# a resource (REASON_LIMIT), and never after a connection has been established.
#
# Group.down has a word for each target, which all workers share:
#
#   0                   the last attempt succeeded, or there was none
#   FALLBACK_AT_ONCE    the last attempt failed in less than FALLBACK_SLOW_NS: every connection tries the target
#   a time              the last attempt failed more slowly: connections skip the target until this time. Then one connection sets
#                       a later time (compare-and-swap) and tries the target again, while the others still skip it
#
# If all remaining targets are to be skipped, they are tried in order all the same.
from libc.stdint cimport uint8_t
from tcpproxy._core.loop cimport Loop, Relay

cdef enum:
    FALLBACK_AT_ONCE = 1
    FALLBACK_SLOW_NS = 1000000000       # a choice: the kernel takes 3 s to report an unreachable neighbour
    FALLBACK_PASS_OVER_NS = 10000000000     # nginx's fail_timeout

# Sets Relay.target to the first one to try. False: out of memory
cdef bint fallback_begin(Loop *loop, Relay *relay) noexcept nogil
# The current target was not reached. True: Relay.target is the next one to try; False: none is left
cdef bint fallback_next(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil
cdef void fallback_reached(Loop *loop, Relay *relay) noexcept nogil


cdef inline bint fallback_has(const Relay *relay) noexcept nogil:
    """Its forward has several targets, and it is not connected."""
    return relay.connecting != NULL and relay.connecting.share.owner != NULL
