# One proxied connection: what its events, timers and turns do. The struct and its states are in loop.pxd.
#
#   resolving -> connecting -> relaying -> [resetting | lingering] -> closed
#     opening.pyx               here          closing.pyx
from libc.stdint cimport uint32_t
from tcpproxy._core.loop cimport Loop, Relay

cdef void relay_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil
cdef void relay_timer(Loop *loop, Relay *relay, int kind) noexcept nogil
cdef void relay_turn(Loop *loop, Relay *relay) noexcept nogil           # from the run queue
# Turns of the relays on the bulk queue. `others`: turns that other relays have had in this batch. Beside interactive traffic as
# many of bulk, at least one, before the next look for events: a small message waits for one turn of bulk, not for all. With
# poll(2), which looks at every socket, at least as many as such a look is worth
cdef void relay_turns_of_bulk(Loop *loop, int others) noexcept nogil
