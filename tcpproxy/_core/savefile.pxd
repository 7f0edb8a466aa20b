# The file of a capture: blocks are gathered in memory and written many at a time. The thread that reads the taps writes it. While
# a write waits, the taps fill and the traffic waits. So nothing is left out of a capture because its disk, or the reader of its
# pipe, is slow.
#
# A write that fails ends the capture, not the traffic: the file is truncated after its last whole block, and from then on
# connections are counted as left out.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.packets cimport Flow, Packets
from tcpproxy._core.tap cimport TapRecord

cdef enum:
    SAVEFILE_ROOM = 1048576     # bytes that are gathered

# A function that is called every 100 ms while a write waits, and after it. The write has at most SAVEFILE_ROOM bytes and began at
# `since_ns` of clock_ns.
ctypedef void (*savefile_waits)(void *owner, uint64_t since_ns) noexcept nogil

cdef struct SaveFile:
    int fd                  # the owner closes it; -1: there is no file, and blocks are dropped
    bint regular            # False: a pipe or device, which gets non-blocking writes, so that a write can be given up
    uint8_t *gathered
    uint64_t used           # bytes in `gathered`
    uint64_t size           # position in the file after the last written byte
    uint64_t limit          # size of a full file; 0: none
    uint64_t ended          # connections whose end is gathered, and not written yet
    uint64_t since_ns       # time of day of the beginning
    uint64_t before         # packets in earlier files
    Packets packets
    savefile_waits waits
    void *owner             # for `waits`
    # read by other threads
    uint64_t written        # bytes, in all files
    uint64_t count          # packets that are written
    uint64_t connections    # connections in the files
    uint64_t left_out       # connections that the files lack, wholly or in part
    uint64_t error          # errno of the write that failed; 0: none has failed
    # written by other threads
    uint64_t given_up       # makes a write to a pipe that nobody reads fail with ETIMEDOUT

cdef int savefile_init(SaveFile *file) noexcept nogil          # 0 or -ENOMEM
cdef void savefile_free(SaveFile *file) noexcept nogil
cdef void savefile_begin(SaveFile *file, int fd, bint regular, uint64_t size, const void *head, uint32_t head_size,
                         uint64_t limit) noexcept nogil         # `head`: its first blocks
cdef bint savefile_full(const SaveFile *file) noexcept nogil
# These return False if a write has failed: `error` is set, and there is no file any more.
cdef bint savefile_add(SaveFile *file, Flow *flow, const TapRecord *record, const void *body) noexcept nogil
cdef bint savefile_flush(SaveFile *file) noexcept nogil
cdef bint savefile_end(SaveFile *file) noexcept nogil          # the last block; then there is no file any more
