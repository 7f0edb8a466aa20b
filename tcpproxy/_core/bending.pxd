# What faults do to a relay as a whole. They take it when it begins or when the faults change, give it a turn when held bytes are
# due, and end it. What they do to the bytes of a direction is in shaper.pxd.
#
# A relay that a plan takes has a Shaping. Each direction that a rule takes has its Shaper in Half.shaper. The Shaping is freed
# when no direction has a Shaper any more.
#
# How a fault ends a relay:
#
#   RST, at a time       both sides are reset at once
#   RST, at a position   the kernel already has the bytes before the position. The source is reset at once, the sink when the
#                        kernel has sent them (RELAY_RESETTING)
#   FIN                  both sides get FIN, after the bytes that the kernel already has; the relay lingers
#   not connected        the client gets the RST or FIN, and connecting to upstream is given up
#
# Everything else that the relay holds, in both directions, is dropped.
from tcpproxy._core.loop cimport RELAY_RESOLVING, Loop, Relay
from tcpproxy._core.plan cimport Plan
from tcpproxy._core.timers cimport TIMER_NONE

# To be called when a client was accepted. False: a fault has ended the relay, or delays its connect (bending_waits)
cdef bint bending_begin(Loop *loop, Relay *relay) noexcept nogil
# To be called after the pumps of a turn: reports rules that have acted, and sets the alarm. False: a fault has ended the relay
cdef bint bending_go_on(Loop *loop, Relay *relay) noexcept nogil
cdef void bending_alarm(Loop *loop, Relay *relay) noexcept nogil    # the alarm is due
# Gives the worker and its relays another plan. To be called between two batches
cdef void bending_change(Loop *loop, Plan *plan) noexcept nogil
# Whether upstream may be connected to now. Until then the relay is RELAY_RESOLVING without a deadline; its alarm gives it a turn
cdef bint bending_may_dial(Loop *loop, Relay *relay) noexcept nogil


cdef inline bint bending_waits(const Relay *relay) noexcept nogil:
    """A fault delays the connection to upstream."""
    return relay.state == RELAY_RESOLVING and relay.deadline.kind == TIMER_NONE


cdef inline bint bending_has(const Relay *relay) noexcept nogil:
    """Faults shape a direction of the relay, or delay its connection to upstream."""
    return relay.halves[0].shaper != NULL or relay.halves[1].shaper != NULL
