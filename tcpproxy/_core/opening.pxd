# The beginning of a relay: from an accepted socket to two connected ones.
#
#   (introducing --a header---> ) resolving --addresses--> connecting --an attempt wins--> (greeting --> ) relaying
#                                     ^                        |
#                                     `--- the next target <---'   of a forward with several (fallback.pxd)
#
# A failure resets the client. Bytes that the client sends meanwhile stay unread in the kernel. With --send-proxy the first bytes
# for upstream are a header. The send buffer almost always has room for the whole header, so RELAY_GREETING is rare.
from libc.stdint cimport uint8_t, uint32_t
from tcpproxy._core.inbox cimport Message
from tcpproxy._core.loop cimport Loop, Relay

# Takes over an accepted socket (MESSAGE_CONNECTION), which `active` already counts
cdef void opening_start(Loop *loop, const Message *accepted) noexcept nogil
# Resets an accepted socket. REASON_LIMIT with errno 0: too many connections of its source; REASON_SHUTDOWN: the worker has failed
cdef void opening_turn_away(Loop *loop, const Message *accepted, uint8_t reason, int error) noexcept nogil
# A turn of a relay that is not connected yet: applies faults, and tries the next target
cdef void opening_turn(Loop *loop, Relay *relay) noexcept nogil
cdef void opening_resolved(Loop *loop, Relay *relay) noexcept nogil        # a lookup has completed, perhaps without addresses
cdef void opening_next_attempt(Loop *loop, Relay *relay) noexcept nogil    # TIMER_STAGGER, or an attempt has failed
cdef void opening_timed_out(Loop *loop, Relay *relay) noexcept nogil       # TIMER_CONNECT
cdef void opening_share_over(Loop *loop, Relay *relay) noexcept nogil      # TIMER_SHARE
# An event, as in relay_event: of the client before the relay is connected, or of upstream in RELAY_GREETING
cdef void opening_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil
cdef void opening_attempt_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil
