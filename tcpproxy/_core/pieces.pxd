# Pieces: what the reader of the tap tells the log thread for a dump, through a ring of the same kind. The reader never waits:
# while the ring has no room, what it would tell is counted for each connection, and told as a gap once half of the ring is
# free. Until then everything is counted, so that the pieces of a connection stay in order, and gaps are few and large.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.tap cimport Tap, TapRecord

cdef enum:
    PIECES_SIZE = 4194304       # bytes of the ring
    ENDED = 1000                # ended connections with something missing that are told one by one; others as one sum

cdef struct Missing:            # what is to be told of one connection
    Missing *before
    Missing *after
    Missing **owner             # where a live connection keeps its pointer to this; NULL: it has ended
    uint64_t id
    uint64_t time_ns            # of the first that is missing
    uint64_t offsets[2]         # by side
    uint64_t bytes[2]
    uint64_t ends[2]            # bytes before the end of a stream
    uint8_t kinds[2]            # of the end: TAP_FIN or TAP_RST; 0: none
    uint8_t reason              # of the end of the connection

cdef struct Pieces:
    Tap ring
    uint32_t most               # bytes of each read that are told; 0: nothing is told
    uint64_t total              # bytes of reads, told or not
    bint full                   # all is counted, until half of the ring is free
    Missing *first
    Missing *last
    uint64_t ended              # of these, connections that have ended
    uint64_t lost_connections   # those that are not among them any more, and their bytes
    uint64_t lost_bytes

cdef int pieces_init(Pieces *pieces, uint32_t most) noexcept nogil      # 0 or -ENOMEM
cdef void pieces_free(Pieces *pieces) noexcept nogil
# Tells what the log thread wants to know of a record; `missing` is the place for the pointer of its connection, NULL at first.
cdef void pieces_add(Pieces *pieces, Missing **missing, const TapRecord *record) noexcept nogil
cdef void pieces_catch_up(Pieces *pieces) noexcept nogil                # tells what is missing, if there is room
