# What faults do to a relay: they take hold of it, wake it when something is due, and end it. What they do to the bytes of a
# direction is in shaper.pxd; shaped_pump asks the shaper.
#
# A relay that a plan takes has a Shaping, and each direction that a rule takes has its Shaper in Half.shaper. The Shaping is
# freed when no direction has one any more.
#
# How a fault ends a relay:
#
#   RST, at a time       both sides are reset at once
#   RST, at a position   the bytes before it are with the sink's kernel. The source is reset; the sink once that kernel has sent
#                        them (RELAY_RESETTING)
#   FIN                  both sides get FIN, behind what their kernels have; the relay lingers
#   nothing connected    the client gets the RST or FIN, and upstream is not connected to any more
#
# What else the relay holds in either direction is dropped.
from tcpproxy._core.loop cimport RELAY_RESOLVING, Loop, Relay
from tcpproxy._core.plan cimport Plan
from tcpproxy._core.timers cimport TIMER_NONE

# A client was accepted. False: a fault has ended the relay, or makes it wait: see bending_waits
cdef bint bending_begin(Loop *loop, Relay *relay) noexcept nogil
# Behind the pumps of a turn: ends the relay if a fault says so (False); reports, and sets the alarm
cdef bint bending_go_on(Loop *loop, Relay *relay) noexcept nogil
cdef void bending_alarm(Loop *loop, Relay *relay) noexcept nogil
# Another plan for the worker and its relays, between two batches
cdef void bending_change(Loop *loop, Plan *plan) noexcept nogil


# Upstream may be connected to now. A relay that a fault makes wait is RELAY_RESOLVING without a deadline, and gets a turn then
cdef bint bending_may_dial(Loop *loop, Relay *relay) noexcept nogil


cdef inline bint bending_waits(const Relay *relay) noexcept nogil:
    """A fault puts its connection to upstream off."""
    return relay.state == RELAY_RESOLVING and relay.deadline.kind == TIMER_NONE


cdef inline bint bending_has(const Relay *relay) noexcept nogil:
    return relay.halves[0].shaper != NULL or relay.halves[1].shaper != NULL
