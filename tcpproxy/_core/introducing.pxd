# Connections that begin with a header of the PROXY protocol (--accept-proxy), which has the client's real address.
#
# The peer's address decides whether a header is expected, never the bytes that it sends. Until the header is complete, no name is
# looked up, upstream is not connected to, and no event is reported; the relay only has its id. Only the header's bytes are
# consumed. The bytes after it stay in the socket, as those of any client do.
from libc.stdint cimport uint32_t
from tcpproxy._core.loop cimport Loop, Relay

cdef void introducing_begin(Loop *loop, Relay *relay) noexcept nogil
# An event of the client's socket. True: the header is complete, and its client is admitted. Else it is incomplete, or the relay
# has ended
cdef bint introducing_event(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil
cdef void introducing_timed_out(Loop *loop, Relay *relay) noexcept nogil       # TIMER_HEADER
