# The end of a relay: resets passed on, last bytes drained, sockets closed.
#
#   relaying --a side was reset--> resetting --the kernel has sent all queued bytes--> closed
#   relaying --cut by a fault--> resetting, or as killed
#   relaying --both FINs passed on, a peer still sends--> lingering --its FIN, or time--> closed
#   any      --killed with FIN: its end is reported--> lingering --both FINs, or time--> closed
#
# closing_close() and closing_timeout() end a relay at once; its slot is reclaimed by the engine after the batch.
from libc.stdint cimport uint8_t
from tcpproxy._core.loop cimport Loop, Relay
from tcpproxy._core.reports cimport Refusal

cdef void closing_close(Loop *loop, Relay *relay, bint reset) noexcept nogil   # `reset`: RST to both sides, else FIN
cdef void closing_timeout(Loop *loop, Relay *relay, uint8_t reason) noexcept nogil     # RST to sides that had no FIN
cdef void closing_abort(Loop *loop, Relay *relay) noexcept nogil               # the proxy stops
cdef void closing_kill(Loop *loop, Relay *relay, bint reset) noexcept nogil    # `reset`: RST to both sides, else FIN
cdef void closing_out_of_memory(Loop *loop, Relay *relay) noexcept nogil       # RST to both sides
# A fault ends the relay, by RST or FIN to both sides. `flush`: delivered bytes of `side` must arrive before the RST
cdef void closing_cut(Loop *loop, Relay *relay, int side, bint reset, bint flush) noexcept nogil
cdef void closing_connect_failed(Loop *loop, Relay *relay, uint8_t reason, int error) noexcept nogil   # upstream was not reached
# Both are for a relay that was not reported yet, and reset the client. The first reports `failed`; `more` may be NULL. The second
# only counts it
cdef void closing_refuse(Loop *loop, Relay *relay, uint8_t reason, int error, Refusal *more) noexcept nogil
cdef void closing_leave(Loop *loop, Relay *relay, uint8_t reason) noexcept nogil
cdef void closing_forget_attempts(Loop *loop, Relay *relay) noexcept nogil     # closes the attempts that are still in progress
# First failure of a side: nothing more is delivered to it; bytes that it has sent are still read and delivered
cdef void closing_side_failed(Loop *loop, Relay *relay, int side) noexcept nogil
# Passes a reset on, after all bytes before it are delivered. True: the relay no longer relays
cdef bint closing_pass_reset_on(Loop *loop, Relay *relay, int side) noexcept nogil
cdef void closing_reset_when_sent(Loop *loop, Relay *relay) noexcept nogil     # a step of RELAY_RESETTING
cdef void closing_linger(Loop *loop, Relay *relay) noexcept nogil              # both FINs were passed on
cdef void closing_drain_input(Loop *loop, Relay *relay) noexcept nogil         # a step of RELAY_LINGERING
cdef void closing_arm_linger(Loop *loop, Relay *relay) noexcept nogil
# Stores how many bytes have left the kernel. True: more than at the last call, and some are still unsent
cdef bint closing_measure_progress(Relay *relay) noexcept nogil
