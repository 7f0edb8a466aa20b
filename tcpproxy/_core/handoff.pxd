# Accepted sockets on their way to another worker: a bounded queue, many writers, one reader, no locks. Each cell carries
# the turn it is good for, so that a writer publishes by one store and a full queue is seen without counting.
from libc.stdint cimport uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:
    HANDOFF_ROOM = 512      # a power of two; a full queue means that the accepting worker keeps the connection

cdef struct Handed:
    uint64_t turn
    net_socket fd
    int target              # upstream
    net_addr client

cdef struct Handoff:
    Handed cells[HANDOFF_ROOM]
    uint64_t tail           # writers claim it
    uint64_t head           # the reader's own

cdef void handoff_init(Handoff *queue) noexcept nogil
cdef bint handoff_push(Handoff *queue, net_socket fd, const net_addr *client, int target) noexcept nogil   # False: full
cdef bint handoff_pop(Handoff *queue, Handed *out) noexcept nogil                                           # False: empty
