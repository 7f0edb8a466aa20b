# The tap: a ring buffer in which a worker records the bytes that pass through its relays. The worker writes it; the thread of
# reader.pyx reads it. No byte is left out: if the ring has no room for a read, the half does not read (PUMP_STALLED of half.pxd),
# and the reader wakes the worker when there is room again. The worker never blocks.
#
# recv writes into the ring, and the bytes are sent from there: no copy is made for the tap. They are recorded, by tap_commit,
# before they are sent. So a peer that has received a byte finds it in the ring.
#
# Records other than TAP_DATA are small and always accepted. Without room in the ring they wait in a list, in order. While the
# list is not empty every read is refused, so that the records of a connection stay in order. The number of relays bounds the
# list: a relay writes at most seven such records in its life, and one for each read.
#
# Positions count bytes since the start; modulo `size` they are offsets in the memory. A record takes at most half of the memory.
#
# A record begins at a multiple of TAP_ALIGN. After a TAP_SKIP, and where less than a header is left before the end of the memory,
# the next record is at the beginning of the memory.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:                  # TapRecord.kind. `id` and `time_ns` are set in all but TAP_SKIP
    TAP_SKIP = 0            # nothing: the rest of the memory
    TAP_OPEN                # a client was accepted. Body: TapOpen
    TAP_CONNECTED           # upstream was connected. Body: TapConnected
    TAP_DATA                # `size` bytes that `side` has sent, from `offset` of its stream on. Body: the bytes
    TAP_DELIVERED           # all bytes that `side` has sent, up to `offset`, were written to the other side's socket
    TAP_FIN                 # the end of what `side` sends was passed on to the other side; `offset` bytes came before it
    TAP_RST                 # the proxy reset the socket of the other side: nothing more comes from `side`
    TAP_END                 # the connection has ended. Body: TapEnd
    # The next two are only in the ring of pieces.pxd. Body: uint64_t, a number of missing bytes
    TAP_GAP                 # bytes of `side` from `offset` on are missing
    TAP_LOST                # the ends of `offset` connections are missing, and bytes of these
    TAP_KINDS

cdef enum:
    TAP_ALIGN = 16          # bytes
    TAP_READ = 61440        # the most bytes of a read, so that each read fits an IP packet (65,535 bytes with its headers)
    TAP_SIZE = 4194304      # bytes of a worker's ring

cdef enum:                  # Tap.asleep
    TAP_AWAKE = 0
    TAP_GATHERS             # the reader sleeps for some milliseconds, and is woken when half of the ring is full
    TAP_SLEEPS              # the next record wakes it

cdef struct TapRecord:      # 48 bytes; the body follows
    uint64_t id             # of the connection
    uint64_t time_ns        # clock_ns
    uint64_t offset
    uint32_t size           # bytes of the body
    uint32_t room           # bytes from this record to the next one
    uint8_t kind
    uint8_t side            # CLIENT or UPSTREAM of loop.pxd: the side that sent the bytes
    uint8_t spare[2]
    uint32_t whole          # pieces.pxd: bytes of the read; the body may have only the first of them
    uint64_t unused

cdef struct TapOpen:
    net_addr client
    net_addr listener       # the proxy's address that the peer connected to
    net_addr via            # the peer, if it has sent the client's address in a PROXY header; length 0: it has not

cdef struct TapConnected:
    net_addr upstream
    net_addr local          # the proxy's own address towards upstream

cdef struct TapEnd:
    net_addr upstream       # connected to, or tried last
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client
    uint64_t duration_ns    # since accept
    uint64_t connect_ns     # from accept to connected; 0: not connected
    int32_t error           # errno, or 0
    uint8_t reason          # REASON_ of events.pxd

cdef struct Late:           # a record that found no room; its body follows
    Late *next
    uint64_t unused         # so that `record` is aligned as in the ring
    TapRecord record

cdef struct Tap:
    char *memory
    uint64_t size           # a power of two
    uint64_t written        # position after the last record; changed by the writer only
    uint64_t taken          # position up to which the reader has given the memory back
    uint64_t waiting        # the writer wants to be woken when there is room
    uint64_t asleep         # TAP_AWAKE, TAP_GATHERS or TAP_SLEEPS
    uint64_t closed         # the writer has ended: the reader owns the late records
    uint64_t lost           # records for which there was no memory
    net_socket wakeup       # net_wake of it wakes the reader
    # the rest is not shared: fields of the writer
    uint64_t claimed        # position of the record that tap_claim has made room for
    Late *late
    Late *late_last
    uint64_t id             # the connection that has its turn
    const void *client      # the client's Side of that connection, to tell which side a `source` is
    # a field of the reader
    uint64_t reading

cdef int tap_init(Tap *tap, uint64_t size) noexcept nogil          # 0 or -ENOMEM; the reader sets `wakeup` before the worker runs
cdef void tap_free(Tap *tap) noexcept nogil

# for the writer
cdef char *tap_claim(Tap *tap, uint32_t most) noexcept nogil        # room for a read of up to `most` bytes. NULL: none for now
cdef void tap_commit(Tap *tap, uint8_t side, uint64_t offset, uint32_t size) noexcept nogil     # records what was read there
cdef void tap_note(Tap *tap, uint8_t kind, uint64_t id, uint8_t side, uint64_t offset,
                   const void *body, uint32_t size) noexcept nogil
# Writes a copy of a record, with `body` of record.size bytes, and sets its `room`. False: there is no room for now.
cdef bint tap_copy(Tap *tap, const TapRecord *record, const void *body) noexcept nogil
cdef bint tap_catch_up(Tap *tap) noexcept nogil     # moves late records into the ring. False: there is no room for all
cdef void tap_close(Tap *tap) noexcept nogil        # the writer has ended

# for the reader
cdef const TapRecord *tap_next(Tap *tap) noexcept nogil     # the next record, which stays until tap_done. NULL: there is none
cdef void tap_done(Tap *tap, const TapRecord *record) noexcept nogil    # goes on to the next one
cdef bint tap_release(Tap *tap) noexcept nogil      # gives the memory of all done records back. True: wake the writer's poller
cdef bint tap_sleep(Tap *tap, uint64_t how) noexcept nogil  # False: there are records already. Afterwards tap_awake
cdef void tap_awake(Tap *tap) noexcept nogil


cdef inline const char *tap_body(const TapRecord *record) noexcept nogil:
    return <const char *> record + sizeof(TapRecord)
