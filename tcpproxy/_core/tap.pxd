# The tap: a ring in which a worker records what passes through its relays, with one writer (the worker) and one reader (the
# thread of capture.pyx). Nothing is left out: when the ring has no room for a read, the worker does not read
# (PUMP_STALLED of half.pxd), and the reader wakes it once there is room again. The worker never waits.
#
# recv writes into the ring, and the bytes are sent from there: no copy is made for the tap. They are recorded, by tap_commit,
# before they are sent. So a peer that has received a byte finds it in the ring.
#
# Records other than TAP_DATA are small and must not be refused. What finds no room waits in `overflow`, a list in
# order; while it is not empty every read is refused, so that the records of a connection stay in order. It is bounded by the
# number of relays: a relay writes six of them in its life, and one for each read.
#
# A record begins at a multiple of TAP_ALIGN. Where less than a header is left before the end of the memory, or where a TAP_SKIP
# says so, the next record is at the beginning.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:                  # TapRecord.kind. `id`, `side` and `time_ns` are set in all but TAP_SKIP
    TAP_SKIP = 0            # nothing: the rest of the memory
    TAP_OPEN                # a client was accepted. Body: TapOpen
    TAP_CONNECTED           # upstream was connected. Body: TapConnected
    TAP_DATA                # `size` bytes that `side` has sent, from `offset` of its stream on. Body: the bytes
    TAP_DELIVERED           # the kernel of the other side's socket has taken all that `side` sent, up to `offset`
    TAP_FIN                 # the end of what `side` sends was passed on to the other side; `offset` bytes came before it
    TAP_RST                 # the proxy reset the connection to the side that is NOT `side`: no more comes from `side`
    TAP_END                 # the connection is over. Body: TapEnd

cdef enum:
    TAP_ALIGN = 16          # bytes
    TAP_READ = 61440        # bytes of one read at most, so that each read fits one IPv6 or IPv4 packet (65,535 bytes)

cdef struct TapRecord:      # 48 bytes; the body follows
    uint64_t id             # of the connection
    uint64_t time_ns        # clock_ns
    uint64_t offset
    uint32_t size           # bytes of the body
    uint32_t room           # bytes to the next record
    uint8_t kind
    uint8_t side            # CLIENT or UPSTREAM of loop.pxd: who sent the bytes that the record is about
    uint8_t spare[14]

cdef struct TapOpen:
    net_addr client
    net_addr listener       # the proxy's address that the client connected to

cdef struct TapConnected:
    net_addr upstream
    net_addr local          # the proxy's own address towards upstream

cdef struct TapEnd:
    net_addr upstream       # tried last, where it was never connected
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client
    uint64_t connect_ns     # from accept; 0: not connected
    int32_t error           # errno, or 0
    uint8_t reason          # REASON_ of events.pxd
