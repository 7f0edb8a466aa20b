# Facts on their way from the loop to Python: one ring of fixed-size records per worker. One thread writes (the worker), one
# reads. The writer never waits: what does not fit is counted, and the reader says how many were lost.
from libc.stdint cimport int32_t, uint8_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:                  # kinds of event record
    EVENT_NEW = 1           # a client was accepted
    EVENT_END = 2           # a relay that was connected ended
    EVENT_FAILED = 3        # a client was turned away: upstream was not reached
    EVENT_ACCEPT = 4        # accepting pauses: out of descriptors or memory
    EVENT_LIMIT = 5         # accepting pauses: max_connections

cdef enum:                  # why a relay ended; names in logs.REASONS, same order
    REASON_NONE = 0
    REASON_CLIENT_EOF
    REASON_UPSTREAM_EOF
    REASON_CLIENT_RESET
    REASON_UPSTREAM_RESET
    REASON_IDLE
    REASON_HALF_CLOSE_TIMEOUT
    REASON_REFUSED
    REASON_CONNECT_TIMEOUT
    REASON_UNREACHABLE
    REASON_DNS
    REASON_LIMIT
    REASON_SHUTDOWN

cdef struct EventRecord:
    uint8_t kind
    uint8_t reason
    int32_t error           # errno behind it, or 0
    uint64_t id             # of the connection, from 1; 0: about none
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client
    uint64_t duration_ns    # since accept
    uint64_t connect_ns     # from accept to connected
    net_addr client
    net_addr upstream       # the address that was connected, or tried last

cdef struct EventRing:
    EventRecord *records
    uint64_t mask           # room - 1
    uint64_t wanted         # bit 1 << kind: somebody wants to hear of it
    uint64_t written        # by the worker alone
    uint64_t taken          # by the reader alone
    uint64_t lost           # records that did not fit
    uint64_t asleep         # the reader waits for a byte on its socket
    net_socket wakeup         # where that byte goes

cdef int events_init(EventRing *ring, uint64_t room, net_socket wakeup) noexcept nogil     # 0 or -ENOMEM; room: a power of two
cdef void events_free(EventRing *ring) noexcept nogil
cdef EventRecord *events_claim(EventRing *ring, int kind) noexcept nogil     # zeroed; NULL: nobody wants it, or no room (counted)
cdef void events_publish(EventRing *ring) noexcept nogil                     # what events_claim gave is complete
cdef bint events_take(EventRing *ring, EventRecord *record) noexcept nogil   # the reader's side
cdef void events_sleep(EventRing *ring) noexcept nogil                       # reader: ring the wakeup at the next record
cdef bint events_empty(EventRing *ring) noexcept nogil
