# Pieces: records of a dump, which the reader of the tap passes to the log thread through a ring like the tap's. The reader never
# waits. When the ring is full, it counts the bytes of each connection that do not fit, until half of the ring is free. Then it
# writes the counts as gaps. So the pieces of a connection stay in order, and gaps are few and large.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.tap cimport Tap, TapRecord

cdef enum:
    PIECES_SIZE = 4194304       # bytes of the ring
    ENDED = 1000                # ended connections whose gaps are written one by one; those of others are summed

cdef struct Missing:            # the gap of one connection
    Missing *before
    Missing *after
    Missing **owner             # where a live connection keeps its pointer to this; NULL: it has ended
    uint64_t id
    uint64_t time_ns            # of the first missing record
    uint64_t offsets[2]         # by side
    uint64_t bytes[2]
    uint64_t ends[2]            # bytes before the end of a stream
    uint8_t kinds[2]            # of the end: TAP_FIN or TAP_RST; 0: none
    uint8_t reason              # of the end of the connection

cdef struct Pieces:
    Tap ring
    uint32_t most               # bytes of each read that a piece has; 0: there is no dump
    uint64_t total              # bytes of all reads, also of those in gaps
    bint full                   # everything is counted, until half of the ring is free
    Missing *first
    Missing *last
    uint64_t ended              # connections in this list that have ended
    uint64_t lost_connections   # ended connections that were removed from the list, and their bytes
    uint64_t lost_bytes

cdef int pieces_init(Pieces *pieces, uint32_t most) noexcept nogil      # 0 or -ENOMEM
cdef void pieces_free(Pieces *pieces) noexcept nogil
# Writes the piece of a record, or counts it. `missing`: where its connection keeps the pointer to its gap, NULL at first.
cdef void pieces_add(Pieces *pieces, Missing **missing, const TapRecord *record) noexcept nogil
cdef void pieces_catch_up(Pieces *pieces) noexcept nogil                # writes the gaps, if there is room
