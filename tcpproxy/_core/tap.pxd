# The tap: a ring in which a worker records what passes through its relays, with one writer (the worker) and one reader (the
# thread of reader.pyx). Nothing is left out: when the ring has no room for a read, the worker does not read
# (PUMP_STALLED of half.pxd), and the reader wakes it once there is room again. The worker never waits.
#
# recv writes into the ring, and the bytes are sent from there: no copy is made for the tap. They are recorded, by tap_commit,
# before they are sent. So a peer that has received a byte finds it in the ring.
#
# Records other than TAP_DATA are small and are not refused. Those that find no room wait in a list, in order. While it is not
# empty every read is refused, so that the records of a connection stay in order. The list is bounded by the number of relays:
# a relay writes at most seven of them in its life, and one for each read.
#
# Positions count bytes since the start; modulo `size` they are places in the memory. A record has at most half of it.
#
# A record begins at a multiple of TAP_ALIGN. Where less than a header is left before the end of the memory, or where a TAP_SKIP
# says so, the next record is at the beginning.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:                  # TapRecord.kind. `id` and `time_ns` are set in all but TAP_SKIP
    TAP_SKIP = 0            # nothing: the rest of the memory
    TAP_OPEN                # a client was accepted. Body: TapOpen
    TAP_CONNECTED           # upstream was connected. Body: TapConnected
    TAP_DATA                # `size` bytes that `side` has sent, from `offset` of its stream on. Body: the bytes
    TAP_DELIVERED           # the kernel of the other side's socket has taken all that `side` sent, up to `offset`
    TAP_FIN                 # the end of what `side` sends was passed on to the other side; `offset` bytes came before it
    TAP_RST                 # the proxy reset the socket of the other side: nothing more comes from `side`
    TAP_END                 # the connection is over. Body: TapEnd
    # only in the ring of pieces.pxd. Body: uint64_t, a number of bytes
    TAP_GAP                 # bytes of `side` from `offset` on are missing
    TAP_LOST                # so are these, and the ends of `offset` connections
    TAP_KINDS

cdef enum:
    TAP_ALIGN = 16          # bytes
    TAP_READ = 61440        # bytes of a read at most, so that each one fits an IP packet (65,535 bytes with its headers)
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
    uint32_t whole          # pieces.pxd: bytes of the read, of which the body has only the first
    uint64_t unused

cdef struct TapOpen:
    net_addr client
    net_addr listener       # the proxy's address that the client connected to, or whoever has named it in a PROXY header
    net_addr via            # that one; none: nobody has

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
    uint64_t written        # position behind the last record; changed by the writer only
    uint64_t taken          # position up to which the reader has given the memory back
    uint64_t waiting        # the writer wants to be told about room
    uint64_t asleep         # TAP_AWAKE, TAP_GATHERS or TAP_SLEEPS
    uint64_t closed         # the writer has ended: the reader owns the late records
    uint64_t lost           # records for which there was no memory
    net_socket wakeup       # of the reader: net_wake wakes it
    # of the writer
    uint64_t claimed        # position of the record that tap_claim has made room for
    Late *late
    Late *late_last
    uint64_t id             # of the connection that has its turn
    const void *client      # its Side: tells what `source` is
    # of the reader
    uint64_t reading

cdef int tap_init(Tap *tap, uint64_t size) noexcept nogil          # 0 or -ENOMEM; the reader sets `wakeup` before the worker runs
cdef void tap_free(Tap *tap) noexcept nogil

# for the writer
cdef char *tap_claim(Tap *tap, uint32_t most) noexcept nogil        # room for a read of up to `most` bytes. NULL: none for now
cdef void tap_commit(Tap *tap, uint8_t side, uint64_t offset, uint32_t size) noexcept nogil     # records what was read there
cdef void tap_note(Tap *tap, uint8_t kind, uint64_t id, uint8_t side, uint64_t offset,
                   const void *body, uint32_t size) noexcept nogil
# Writes a record with all but `room`, and with that body, of `size` bytes. False: there is no room for now.
cdef bint tap_copy(Tap *tap, const TapRecord *record, const void *body) noexcept nogil
cdef bint tap_catch_up(Tap *tap) noexcept nogil     # moves late records into the ring. False: there is no room for all
cdef void tap_close(Tap *tap) noexcept nogil        # the writer has ended

# for the reader
cdef const TapRecord *tap_next(Tap *tap) noexcept nogil     # the next record, which stays until tap_done. NULL: there is none
cdef void tap_done(Tap *tap, const TapRecord *record) noexcept nogil    # goes on to the one behind it
cdef bint tap_release(Tap *tap) noexcept nogil      # gives the memory of all done records back. True: wake the writer's poller
cdef bint tap_sleep(Tap *tap, uint64_t how) noexcept nogil  # False: there are records already. Afterwards tap_awake
cdef void tap_awake(Tap *tap) noexcept nogil


cdef inline const char *tap_body(const TapRecord *record) noexcept nogil:
    return <const char *> record + sizeof(TapRecord)
