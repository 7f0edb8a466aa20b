# Recordings: the first bytes of each direction of each connection, in memory, for the program. The reader of the tap writes them;
# any thread reads them, under the lock.
#
# A recording counts its users: the store, as long as it keeps it, and each Python object for it. The last one frees it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr
from tcpproxy._core.tap cimport TapRecord

cdef enum:
    RECORDINGS_KEPT = 1000      # the most recordings; then the oldest ended one is dropped
    CHUNKS = 65536              # the most reads of a connection whose boundaries are kept

cdef struct Chunk:              # one read
    uint64_t time_ns            # clock_ns
    uint32_t size               # bytes of it that are kept
    uint8_t side                # who sent it

cdef struct Stream:             # the bytes that one side sent
    char *bytes
    uint64_t kept
    uint64_t room
    uint64_t total              # all bytes, kept or not

cdef struct Recording:
    Recording *next             # in the store, in the order of accept
    uint64_t users
    uint64_t id
    uint64_t opened_ns          # clock_ns
    net_addr client
    net_addr upstream           # length 0: not connected
    Stream streams[2]           # by side: CLIENT, UPSTREAM of loop.pxd
    Chunk *chunks
    uint32_t chunk_count
    uint32_t chunk_room
    uint8_t reason              # REASON_ of events.pxd
    uint8_t ended
    uint8_t truncated           # a read, or part of one, is not kept

cdef struct Recordings:
    uint64_t most               # bytes kept of each direction; 0: nothing is recorded
    uint64_t lock               # protects all other fields, also those of the recordings
    uint64_t count
    uint64_t ended              # recordings of ended connections
    uint64_t forgotten          # recordings that were dropped, or for which there was no memory
    Recording *first
    Recording *last

cdef void recordings_lock(Recordings *store) noexcept nogil
cdef void recordings_unlock(Recordings *store) noexcept nogil
cdef void recordings_free(Recordings *store) noexcept nogil
cdef void recordings_drop(Recordings *store, Recording *recording) noexcept nogil   # one user less; takes the lock
# The reader of the tap calls one of these for each record. `recording`: the result of recordings_open. Both take the lock.
cdef Recording *recordings_open(Recordings *store, const TapRecord *record) noexcept nogil     # NULL: no memory
cdef void recordings_add(Recordings *store, Recording *recording, const TapRecord *record) noexcept nogil
