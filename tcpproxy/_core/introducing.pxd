# A client whose first bytes are a header of the PROXY protocol (--accept-proxy), which says who the client really is.
#
# Whether a header comes is known from the address of its peer, never from what it sends. Until the header is complete nothing
# happens for the client, and nobody has been told of it but by the number of its relay. Of its bytes only those are taken that
# belong to the header: those behind it wait in the kernel, as those of any client.
from libc.stdint cimport uint32_t
from tcpproxy._core.loop cimport Loop, Relay

cdef void introducing_begin(Loop *loop, Relay *relay) noexcept nogil
# An event of the client. True: the header was read, and its client is welcome. Else it goes on, or the client was reset
cdef bint introducing_event(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil
cdef void introducing_timed_out(Loop *loop, Relay *relay) noexcept nogil       # TIMER_HEADER
