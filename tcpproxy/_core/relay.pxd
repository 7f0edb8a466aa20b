# One proxied connection: what its events, timers and turns do. The struct and its states are in loop.pxd.
#
#   resolving -> connecting -> relaying -> [resetting | lingering] -> closed
#     opening.pyx               here          closing.pyx
from libc.stdint cimport uint32_t
from tcpproxy._core.loop cimport Loop, Relay

cdef void relay_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil
cdef void relay_timer(Loop *loop, Relay *relay, int kind) noexcept nogil
cdef void relay_turn(Loop *loop, Relay *relay) noexcept nogil           # from the run queue
