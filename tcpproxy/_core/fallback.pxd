# Forwards with several targets: which one a connection tries, and what is remembered of each.
#
# The targets are tried in order. Each has an equal share of the time that is left until TIMER_CONNECT, and the last one all
# of it. Next is the turn of another one when a name does not resolve, or nothing is connected; not when it is ourselves who lack
# something (REASON_LIMIT), and never once a connection stood.
#
# Group.down has a word for each target, which all workers share:
#
#   0                   it was reached the last time, or not tried yet
#   FALLBACK_AT_ONCE    it was not, and that took less than FALLBACK_SLOW_NS: it is asked each time
#   a time              it was not, and that took longer: a connection passes it over until then. Then one connection, that which
#                       moves the time on, tries it again, while the others go on passing it over
#
# Where all that are left are passed over, they are tried in order all the same.
from libc.stdint cimport uint8_t
from tcpproxy._core.loop cimport Loop, Relay

cdef enum:
    FALLBACK_AT_ONCE = 1
    FALLBACK_SLOW_NS = 1000000000       # a choice: an unreachable neighbour takes 3 s to say so
    FALLBACK_PASS_OVER_NS = 10000000000     # nginx's fail_timeout

# Sets Relay.target to the one to begin with. False: there was no memory for it
cdef bint fallback_begin(Loop *loop, Relay *relay) noexcept nogil
# The present target was not reached. True: Relay.target is another one; False: none is left
cdef bint fallback_next(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil
cdef void fallback_reached(Loop *loop, Relay *relay) noexcept nogil


cdef inline bint fallback_has(const Relay *relay) noexcept nogil:
    """Its forward has several targets, and it is not connected."""
    return relay.connecting != NULL and relay.connecting.share.owner != NULL
