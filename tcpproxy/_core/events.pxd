# Facts that the core reports to Python: one ring of fixed-size records per worker, with one writer (the worker) and one
# reader (the log thread). The writer never waits: records that do not fit are counted, and the reader logs the count.
#
# Whenever the reader has taken all, the next record is the first of the memory again. So a ring that is never full uses as much
# of it as was ever waiting, a few cached pages, and not all. The writer alone changes `base`, and only while the ring is empty;
# the reader looks at it only while it is not.
from libc.stdint cimport int32_t, uint8_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket
from tcpproxy._core.sync cimport sync_peek

cdef enum:                  # EventRecord.kind; names in events_kind_name
    EVENT_NEW = 1           # a client was accepted
    EVENT_CONNECTED         # its upstream is connected
    EVENT_END               # a relay has ended; connect_ns is 0 if that was before it was connected
    EVENT_FAILED            # a client was turned away, or its upstream was not reached
    EVENT_ACCEPT_ERROR      # accepting pauses: out of descriptors or memory (EMFILE and the like)
    EVENT_ACCEPT_LIMIT      # accepting pauses: as many connections as allowed (Group.limit). No relay ends with it
    EVENT_FAULT             # `fault` has acted on a connection, the first time; to_upstream, to_client: how far these were
    EVENT_UPSTREAM_DOWN     # `target`, one of several of a forward, was not reached, and had been; `fault`: the one tried instead
    EVENT_UPSTREAM_UP       # `target` was not reached, and is again
    KINDS

cdef enum:
    EVENTS_OUTGOING = 1     # bit of EventRing.wanted: records of connections have `outgoing`, which costs a call each

cdef enum:                  # why a relay ended; names in events_reason_name
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
    REASON_LIMIT            # no descriptor, memory or local port for it, or too many connections of its source
    REASON_SHUTDOWN
    REASON_KILLED           # by the program (Proxy.kill, Proxy.down)
    REASON_FAULT            # by a fault
    REASON_DENIED           # the address of the client is not admitted
    REASON_PROXY_HEADER     # the PROXY header of a client is wrong or late; `error` is HEADER_ of header.pxd
    REASONS

cdef enum:
    BEGIN = 16              # bytes of a PROXY header that are told if it is wrong

cdef struct EventRecord:
    uint8_t kind
    uint8_t reason
    uint8_t target          # index of the upstream
    int32_t error           # errno of the cause, or 0
    uint64_t id             # of the connection, from 1; 0: the record is about no connection
    uint64_t at_ns          # when it happened, by the worker's clock
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client      # bytes delivered
    uint64_t duration_ns    # since accept
    uint64_t connect_ns     # from accept to connected
    uint64_t fault          # EVENT_FAULT: Rule.key of plan.pxd; EVENT_UPSTREAM_DOWN: an upstream, `target` itself if none is left
    net_addr client
    net_addr upstream       # the address that was connected, or the one tried last
    net_addr outgoing       # the proxy's own address toward upstream; only if EVENTS_OUTGOING is wanted
    net_addr via            # who has sent a PROXY header, and so named the client; none: nobody
    uint8_t begin_size      # REASON_PROXY_HEADER: how the header begins
    uint8_t begin[BEGIN]

cdef struct EventRing:
    EventRecord *records
    uint64_t mask           # number of records - 1
    uint64_t wanted         # bit 1 << kind: records of that kind are written; EVENTS_OUTGOING
    uint64_t written        # records since the start; changed by the worker only
    uint64_t taken          # records since the start; changed by the reader only
    uint64_t base           # number of the record that was written at the beginning of `records`
    uint64_t lost           # records that did not fit
    uint64_t asleep         # the reader sleeps until a byte arrives at its socket
    net_socket wakeup       # that byte is sent here


cdef inline bint events_wanted(EventRing *ring, uint64_t bits) noexcept nogil:
    return sync_peek(&ring.wanted) & bits != 0


cdef int events_init(EventRing *ring, uint64_t room, net_socket wakeup) noexcept nogil    # 0 or -ENOMEM; room: a power of two
cdef void events_free(EventRing *ring) noexcept nogil
cdef EventRecord *events_claim(EventRing *ring, int kind) noexcept nogil   # zeroed; NULL: not wanted, or no room (counted)
cdef void events_publish(EventRing *ring) noexcept nogil                   # the record that events_claim returned is complete
cdef bint events_take(EventRing *ring, EventRecord *record) noexcept nogil  # for the reader. False: there is none
cdef void events_sleep(EventRing *ring) noexcept nogil                     # for the reader: the next record wakes it
cdef bint events_empty(EventRing *ring) noexcept nogil
cdef const char *events_kind_name(int kind) noexcept nogil                 # "" for 0; NULL: no such kind
cdef const char *events_reason_name(int reason) noexcept nogil             # "" for REASON_NONE; NULL: no such reason
